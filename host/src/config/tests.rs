use super::*;

const PIN: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn error(text: &str) -> String {
    text.parse::<Config>().unwrap_err().to_string()
}

#[test]
fn printed_default_is_the_default() {
    let text = default_toml();
    assert_eq!(text.parse::<Config>().unwrap(), Config::default());
    assert_eq!("".parse::<Config>().unwrap(), Config::default());
}

/// The message about an unknown field lists the known ones, which must all stand in the printed default.
#[test]
fn printed_default_names_every_field() {
    let printed: toml::Table = default_toml().parse().unwrap();
    let fields = |text: &str| -> Vec<String> {
        let message = error(text);
        let (_, list) = message.split_once("expected one of").or_else(|| message.split_once("expected `")).unwrap();
        let list = if message.contains("expected one of") { list.to_owned() } else { format!("`{list}") };
        list.lines().next().unwrap().split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let top = fields("zz = 1");
    assert_eq!(top.len(), printed.len(), "{top:?}");
    let mut tables = 0;
    for field in &top {
        let value = printed.get(field).unwrap_or_else(|| panic!("{field} is not printed"));
        if let toml::Value::Table(table) = value {
            tables += 1;
            let inner = fields(&format!("[{field}]\nzz = 1"));
            assert_eq!(inner.len(), table.len(), "{field}");
            for name in &inner {
                assert!(table.contains_key(name), "{field}.{name} is not printed");
            }
        }
    }
    assert_eq!(tables, 7);
}

#[test]
fn reads_a_full_configuration() {
    let config: Config = format!(
        r#"
        state = "/var/lib/bulbil"
        roles = ["relay", "exit", "client"]
        listen = ["0.0.0.0:9001", "[::]:9001"]
        advertise = ["192.0.2.7:9001", "[2001:db8::7]:9001"]
        bootstrap = ["192.0.2.1:9001#{PIN}", "[2001:db8::1]:9001#{PIN}"]
        [socks]
        listen = ["[::1]:1080"]
        connections = 10
        [exit]
        policy = ["accept *:443"]
        [onion_key]
        kind = "rsa2048"
        rotation_seconds = 7200
        [path]
        hops = 3
        network_groups = "require"
        [limits]
        cells = 64
        [log]
        level = "debug"
        format = "json"
        "#
    )
    .parse()
    .unwrap();
    assert_eq!(config.roles, Roles { relay: true, exit: true, client: true });
    assert_eq!(config.bootstrap[1].to_string(), format!("[2001:db8::1]:9001#{PIN}"));
    assert_eq!(config.onion_key.kind, OnionKeyKind::Rsa2048);
    assert_eq!(config.onion_key.rotation(), Duration::from_secs(7200));
    assert_eq!((config.path.hops, config.path.network_groups), (3, NetworkGroups::Require));
    assert_eq!((config.log.level, config.log.format), (LogLevel::Debug, LogFormat::Json));
}

#[test]
fn errors_name_line_field_and_remedy() {
    let cases = [
        ("\nlisten = [\"x\"]", &["line 2", "listen"][..]),
        ("colour = 1", &["line 1", "colour", "expected one of", "--print-config"]),
        ("[limits]\n\ncells = 63", &["line 3", "cells", "63 is out of range", "from 64 to 16777216"]),
        ("[limits]\ncells = -1", &["line 2", "-1 is out of range"]),
        ("[limits]\ncells = 99999999999", &["99999999999 is out of range"]),
        ("[limits]\ncells = \"many\"", &["line 2", "cells = \"many\"", "invalid type"]),
        ("[path]\nhops = 5", &["line 2", "hops = 5", "from 1 to 4"]),
        ("[path]\nhops = 0", &["from 1 to 4"]),
        ("[path]\nnetwork_groups = \"maybe\"", &["line 2", "maybe", "`require`, `prefer`, `ignore`"]),
        ("[onion_key]\nkind = \"rsa1024\"", &["line 2", "rsa1024", "x-wing"]),
        ("[onion_key]\nrotation_seconds = 59", &["line 2", "from 600 to 604800"]),
        ("roles = []", &["line 1", "roles", "needs a role"]),
        ("roles = [\"relay\", \"relay\"]", &["line 1", "named twice"]),
        ("roles = [\"king\"]", &["line 1", "king", "`relay`"]),
        ("bootstrap = [\"example.com:1\"]", &["line 1", "example.com:1", "address:port#fingerprint"]),
        ("bootstrap = [\"192.0.2.1:1#abc\"]", &["line 1", "64 hexadecimal digits"]),
        ("bootstrap = [\"192.0.2.1:0\"]", &["line 1", "nobody can be reached"]),
        ("bootstrap = [\"192.0.2.1:7\"]", &["`bootstrap`", "192.0.2.1:7#fingerprint", "allow_unpinned"]),
        ("roles = [\"relay\"]", &["`listen`", "must be reachable"]),
        ("roles = [\"exit\"]\nlisten = [\"0.0.0.0:1\"]", &["`advertise`", "public"]),
        ("advertise = [\"192.0.2.1:0\"]", &["`advertise`", "192.0.2.1:0"]),
        ("advertise = [\"1.1.1.1:1\",\"1.1.1.2:1\",\"1.1.1.3:1\",\"1.1.1.4:1\",\"1.1.1.5:1\"]", &["at most four"]),
        ("listen = [\"1.1.1.1:1\",\"1.1.1.1:1\"]", &["`listen`", "twice"]),
        ("[socks]\nlisten = [\"0.0.0.0:1080\"]", &["`socks.listen`", "127.0.0.1:1080", "allow_remote"]),
        ("[socks]\nlisten = [\"[::]:1080\"]", &["[::1]:1080"]),
        ("[limits]\ncircuits = 1", &["circuits_per_link"]),
        ("[limits]\nlinks = 1", &["half_open_links"]),
        ("state = \"\"", &["`state`"]),
        ("state = ", &["line 1"]),
        ("[log]\nlevel = \"loud\"", &["line 2", "loud", "`trace`"]),
    ];
    for (text, parts) in cases {
        let message = error(text);
        for part in parts {
            assert!(message.contains(part), "{text:?} gave {message:?} without {part:?}");
        }
    }
}

#[test]
fn unpinned_and_remote_need_a_word() {
    let config: Config = "allow_unpinned = true\nbootstrap = [\"192.0.2.1:7\"]".parse().unwrap();
    assert_eq!(config.bootstrap[0].fingerprint, None);
    assert!("[socks]\nlisten = [\"0.0.0.0:1080\"]\nallow_remote = true".parse::<Config>().is_ok());
    let relay = "roles = [\"relay\"]\nlisten = [\"192.0.2.1:9001\"]\n[socks]\nlisten = [\"0.0.0.0:1080\"]";
    assert!(relay.parse::<Config>().is_ok(), "the proxy of a node that is no client is not opened");
}

#[test]
fn reads_the_exit_policy_rule_by_rule() {
    let policy = |rules: &str| format!("[exit]\npolicy = [{rules}]").parse::<Config>().map(|config| config.exit.policy);
    assert_eq!(policy("").unwrap(), Policy::default());
    let expected: Policy = "reject *:25\naccept *:443".parse().unwrap();
    assert_eq!(policy("\"reject *:25\", \"accept *:443\"").unwrap(), expected);
    for (rules, parts) in [
        ("\"accept *:1\", \"permit *:2\"".to_owned(), ["line 2", "the rule \"permit *:2\""]),
        (vec!["\"accept *:1\""; 33].join(","), ["line 2", "more than 32 rules"]),
        ("\"accept *:1\", \"  \"".to_owned(), ["line 2", "the rule \"  \""]),
        ("\"# accept *:1\"".to_owned(), ["line 2", "the rule \"# accept *:1\""]),
        ("\"accept *:1\\nreject *:2\"".to_owned(), ["line 2", "the rule \"accept *:1"]),
    ] {
        let message = policy(&rules).unwrap_err().to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
    let example = default_toml().lines().find_map(|line| line.strip_prefix("# [\"reject").map(str::to_owned)).unwrap();
    let (example, _) = example.split_once(']').unwrap();
    assert!(policy(&format!("\"reject{example}")).is_ok(), "the example that is printed");
}

#[test]
fn loads_files_and_names_them() {
    let dir = crate::scratch::Scratch::new("config");
    let file = dir.path().join("node.toml");
    let message = Config::load(&file).unwrap_err().to_string();
    assert!(message.contains("node.toml"), "{message}");

    std::fs::write(&file, "state = \"keys\"").unwrap();
    assert_eq!(Config::load(&file).unwrap().state, dir.path().join("keys"));
    std::fs::write(&file, "state = \"/keys\"").unwrap();
    assert_eq!(Config::load(&file).unwrap().state, Path::new("/keys"));

    std::fs::write(&file, "x = 1").unwrap();
    assert!(Config::load(&file).unwrap_err().to_string().contains("node.toml: TOML parse error at line 1"));
    std::fs::write(&file, [0xff, 0xfe]).unwrap();
    assert!(matches!(Config::load(&file), Err(ConfigError::NotText { .. })));
    std::fs::write(&file, "#".repeat(FILE_MAX as usize + 1)).unwrap();
    assert!(matches!(Config::load(&file), Err(ConfigError::NotText { .. })));
    assert!(matches!(Config::load(dir.path()), Err(ConfigError::Read { .. })));
}
