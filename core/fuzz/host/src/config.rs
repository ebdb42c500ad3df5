//! The configuration of a node. What is accepted, printed as TOML and read again, is the same configuration, and keeps to every bound that the
//! printed default states; what is refused is refused with the place that is at fault: a line and column, or a field.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bulbil_core::wire::OnionKeyKind;
use bulbil_host::config::{Config, ConfigError, LogFormat, LogLevel, NetworkGroups, default_toml};

use super::script::Script;

/// Every number: table, field, least, most.
const NUMBERS: [(&str, &str, u32, u32); 19] = [
    ("socks", "connections", 1, 65_536),
    ("onion_key", "rotation_seconds", 600, 604_800),
    ("path", "hops", 1, 4),
    ("path", "reuse_seconds", 0, 86_400),
    ("path", "deadline_seconds", 1, 600),
    ("phonebook", "exchange_seconds", 0, 86_400),
    ("phonebook", "test_seconds", 1, 3600),
    ("phonebook", "retry_seconds", 1, 3600),
    ("phonebook", "save_seconds", 1, 86_400),
    ("limits", "links", 1, 65_536),
    ("limits", "half_open_links", 1, 65_536),
    ("limits", "handshake_seconds", 1, 120),
    ("limits", "circuits", 1, 1_048_576),
    ("limits", "circuits_per_link", 1, 1_048_576),
    ("limits", "circuit_idle_seconds", 10, 86_400),
    ("limits", "cells", 64, 16_777_216),
    ("limits", "onions", 1, 65_536),
    ("limits", "jobs_per_link", 1, 4096),
    ("limits", "workers", 0, 256),
];

/// The numbers of a configuration, in that order.
fn numbers(config: &Config) -> [u32; 19] {
    let Config { socks, onion_key, path, phonebook, limits, .. } = config;
    [
        socks.connections,
        onion_key.rotation_seconds,
        path.hops,
        path.reuse_seconds,
        path.deadline_seconds,
        phonebook.exchange_seconds,
        phonebook.test_seconds,
        phonebook.retry_seconds,
        phonebook.save_seconds,
        limits.links,
        limits.half_open_links,
        limits.handshake_seconds,
        limits.circuits,
        limits.circuits_per_link,
        limits.circuit_idle_seconds,
        limits.cells,
        limits.onions,
        limits.jobs_per_link,
        limits.workers,
    ]
}

/// A text, or, behind a zero byte (which no text of a configuration begins with), a [`Script`] that writes one.
pub fn check(input: &[u8]) {
    if let Some((0, script)) = input.split_first() {
        return check_number(&mut Script::new(script)).unwrap_or_default();
    }
    // What is not UTF-8 is cut off.
    let text = match std::str::from_utf8(input) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&input[..error.valid_up_to()]).expect("valid up to there"),
    };
    match text.parse::<Config>() {
        Ok(config) => {
            check_bounds(&config);
            let printed = print(&config);
            let again = printed.parse::<Config>().unwrap_or_else(|error| panic!("{error}\n{printed}"));
            assert_eq!(again, config, "{printed}");
            assert_eq!(print(&again), printed);
        }
        Err(error) => check_error(text, &error),
    }
}

fn check_error(text: &str, error: &ConfigError) {
    let said = error.to_string();
    match error {
        ConfigError::Parse { path: None, .. } => {
            let place = said.split_once("at line ").and_then(|(_, rest)| rest.split_once(", column "));
            let line = place.and_then(|(line, _)| line.parse::<usize>().ok());
            let column = place.and_then(|(_, rest)| rest.lines().next()?.parse::<usize>().ok());
            let lines = text.split('\n').count();
            assert!(line.is_some_and(|line| (1..=lines).contains(&line)), "{said}");
            assert!(column.is_some_and(|column| column >= 1), "{said}");
        }
        ConfigError::Conflict { path: None, field, advice } => {
            assert!(is_field(field), "{said}");
            assert!(said.contains(field) && said.contains(advice.as_str()) && !advice.is_empty());
        }
        ConfigError::Parse { .. } | ConfigError::Conflict { .. } => panic!("no file was named, but {said}"),
        ConfigError::Read { .. } | ConfigError::NotText { .. } => panic!("no file was read, but {said}"),
    }
}

/// Whether the printed default has the field, `table.field` or `field`.
fn is_field(field: &str) -> bool {
    let (table, name) = field.split_once('.').map_or((None, field), |(table, name)| (Some(table), name));
    let default = default_toml();
    let mut here = None;
    default.lines().any(|line| {
        if let Some(table) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            here = Some(table);
        }
        here == table && line.split_once(" = ").is_some_and(|(left, _)| left == name)
    })
}

/// What the printed default says of every field.
fn check_bounds(config: &Config) {
    for (value, (table, field, least, most)) in numbers(config).into_iter().zip(NUMBERS) {
        assert!((least..=most).contains(&value), "{table}.{field} = {value}");
    }
    let reachable = |address: &SocketAddr| {
        let ip = address.ip();
        address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::V4(Ipv4Addr::BROADCAST)
    };
    let Config { roles, listen, advertise, bootstrap, socks, limits, .. } = config;
    assert!(roles.relay || roles.exit || roles.client);
    assert!(!config.state.as_os_str().is_empty());
    if roles.relay || roles.exit {
        assert!(!listen.is_empty());
        assert!(!advertise.is_empty() || !listen.iter().any(|address| address.ip().is_unspecified()));
    }
    assert!(advertise.len() <= 4 && (!advertise.is_empty() || listen.len() <= 4));
    assert!(advertise.iter().all(reachable));
    for (at, address) in listen.iter().enumerate() {
        assert!(address.port() == 0 || !listen[..at].contains(address));
    }
    for node in bootstrap {
        assert!(reachable(&node.address));
        assert!(node.fingerprint.is_some() || config.allow_unpinned);
    }
    if roles.client && !socks.allow_remote {
        assert!(socks.listen.iter().all(|address| address.ip().is_loopback()));
    }
    assert!(limits.circuits_per_link <= limits.circuits && limits.half_open_links <= limits.links);
    assert!(config.exit.policy.rules().len() <= 32);
}

/// A number, in bounds or out of them: which is accepted is known, and so is the line that is at fault.
fn check_number(script: &mut Script<'_>) -> Option<()> {
    let at = script.below(NUMBERS.len())?;
    let (table, field, least, most) = NUMBERS[at];
    let value = match script.byte()? % 8 {
        0 => i64::from(least) - 1,
        1 => i64::from(least),
        2 => i64::from(most),
        3 => i64::from(most) + 1,
        4 => i64::from_be_bytes(script.array()),
        _ => i64::from(script.word()?),
    };
    let before = usize::from(script.byte()? % 4);
    let text = format!("{}[{table}]\n{field} = {value}\n", "# a comment\n".repeat(before));
    let default = Config::default();
    // The two that must not be greater than another one, which is the default here, and those two others.
    let fits = match (table, field) {
        ("limits", "links") => value >= i64::from(default.limits.half_open_links),
        ("limits", "half_open_links") => value <= i64::from(default.limits.links),
        ("limits", "circuits") => value >= i64::from(default.limits.circuits_per_link),
        ("limits", "circuits_per_link") => value <= i64::from(default.limits.circuits),
        _ => true,
    };
    match text.parse::<Config>() {
        Ok(config) => {
            assert!((i64::from(least)..=i64::from(most)).contains(&value) && fits, "{text}");
            let mut expected = numbers(&default);
            expected[at] = value as u32;
            assert_eq!(numbers(&config), expected, "{text}");
        }
        Err(error @ ConfigError::Parse { .. }) => {
            assert!(!(i64::from(least)..=i64::from(most)).contains(&value), "{text}{error}");
            let place = format!("at line {}, ", before + 2);
            let said = error.to_string();
            assert!(said.contains(&place) && said.contains(&format!("from {least} to {most}")), "{text}{said}");
        }
        Err(error) => assert!(!fits, "{text}{error}"),
    }
    Some(())
}

/// The configuration as TOML, every field written.
fn print(config: &Config) -> String {
    let Config {
        state, roles, listen, advertise, bootstrap, allow_unpinned, socks, exit, onion_key, path, log, ..
    } = config;
    let roles = [(roles.relay, "relay"), (roles.exit, "exit"), (roles.client, "client")];
    let roles = roles.iter().filter(|(taken, _)| *taken).map(|(_, name)| *name);
    let rules = exit.policy.to_string();
    let kind = match onion_key.kind {
        OnionKeyKind::XWing => "x-wing",
        OnionKeyKind::Rsa2048 => "rsa2048",
    };
    let groups = match path.network_groups {
        NetworkGroups::Require => "require",
        NetworkGroups::Prefer => "prefer",
        NetworkGroups::Ignore => "ignore",
    };
    let level = match log.level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    let format = match log.format {
        LogFormat::Human => "human",
        LogFormat::Json => "json",
    };
    let mut text = String::new();
    let fields = [
        ("", "state", quote(state.to_str().expect("it came from a text"))),
        ("", "roles", list(roles)),
        ("", "listen", list(listen)),
        ("", "advertise", list(advertise)),
        ("", "bootstrap", list(bootstrap)),
        ("", "allow_unpinned", allow_unpinned.to_string()),
        ("socks", "listen", list(&socks.listen)),
        ("socks", "allow_remote", socks.allow_remote.to_string()),
        ("exit", "policy", list(rules.lines())),
        ("onion_key", "kind", quote(kind)),
        ("path", "network_groups", quote(groups)),
        ("log", "level", quote(level)),
        ("log", "format", quote(format)),
        ("log", "sensitive", log.sensitive.to_string()),
    ];
    let numbers = numbers(config).into_iter().zip(NUMBERS);
    let numbers = numbers.map(|(value, (table, field, ..))| (table, field, value.to_string()));
    for (table, field, value) in fields.into_iter().chain(numbers) {
        let dot = if table.is_empty() { "" } else { "." };
        writeln!(text, "{table}{dot}{field} = {value}").expect("a String takes everything");
    }
    text
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| quote(&item.to_string())).collect();
    format!("[{}]", items.join(", "))
}

/// A basic string of TOML.
fn quote(text: &str) -> String {
    let mut quoted = String::from('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            control if control.is_control() => {
                write!(quoted, "\\u{:04x}", u32::from(control)).expect("a String takes everything");
            }
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}
