//! What people write: exit policies, targets, node ids. Exactly what `PROTOCOL.md` section 12 and the types' documentation allow is
//! understood, and has one canonical text, which is understood as the same thing; a policy's summary never leaves out a port at which the
//! policy accepts something.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bulbil_core::wire::policy::{Policy, Verdict};
use bulbil_core::wire::{NodeId, Target};

/// The input is a text; what is not UTF-8 is cut off.
pub fn check(input: &[u8]) {
    let text = match core::str::from_utf8(input) {
        Ok(text) => text,
        Err(error) => core::str::from_utf8(&input[..error.valid_up_to()]).expect("valid up to there"),
    };
    check_policy(text);
    let target = text.parse::<Target>();
    assert_eq!(target.is_ok(), is_target(text));
    if let Ok(target) = target {
        assert_eq!(target.to_string().parse(), Ok(target));
    }
    let node = text.parse::<NodeId>();
    assert_eq!(node.is_ok(), text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if let Ok(node) = node {
        assert_eq!(node.to_string(), text.to_ascii_lowercase());
    }
}

/// A decimal number: digits and nothing else, zeros before it or not.
fn number(digits: &str) -> Option<u64> {
    if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}

fn port(digits: &str) -> Option<u16> {
    number(digits)?.try_into().ok().filter(|&port| port != 0)
}

/// `phonebook`, or an address or a name and a port. An address of version 6 is in brackets, and may have a scope's number, which is ignored.
fn is_target(text: &str) -> bool {
    let Some((host, digits)) = text.rsplit_once(':') else { return text == "phonebook" };
    let host_fits = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => {
            let (address, scope) = inner.split_once('%').unwrap_or((inner, "0"));
            address.parse::<Ipv6Addr>().is_ok() && number(scope).is_some_and(|scope| scope <= u32::MAX.into())
        }
        None => {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            (1..=253).contains(&host.len()) && !host.starts_with(['.', '-']) && host.bytes().all(allowed)
        }
    };
    host_fits && port(digits).is_some()
}

/// What a line without its comment says: nothing, or the verdict and the first and last port of a rule. An error if it is none.
fn rule(line: &str) -> Result<Option<(Verdict, u16, u16)>, ()> {
    let line = line.trim();
    if line.is_empty() {
        return Ok(None);
    }
    let (verdict, rest) = match (line.strip_prefix("accept"), line.strip_prefix("reject")) {
        (Some(rest), _) => (Verdict::Accept, rest),
        (_, Some(rest)) => (Verdict::Reject, rest),
        (None, None) => return Err(()),
    };
    let mut words = rest.split_whitespace();
    let (Some(pattern), None) = (words.next(), words.next()) else { return Err(()) };
    let (network, ports) = pattern.rsplit_once(':').ok_or(())?;
    if !rest.starts_with([' ', '\t']) || !is_network(network) {
        return Err(());
    }
    let (low, high) = match ports.split_once('-') {
        _ if ports == "*" => (1, u16::MAX),
        Some((low, high)) => port(low).zip(port(high)).ok_or(())?,
        None => port(ports).map(|port| (port, port)).ok_or(())?,
    };
    if low > high { Err(()) } else { Ok(Some((verdict, low, high))) }
}

/// Every network, those that are not public, or an address and a length that leaves none of its bits out.
fn is_network(text: &str) -> bool {
    let (address, len) = text.split_once('/').map_or((text, None), |(address, len)| (address, Some(len)));
    let (bits, all) = match address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => match inner.parse::<Ipv6Addr>() {
            // IPv4 is written as IPv4.
            Ok(ip) if ip.to_ipv4_mapped().is_none() => (ip.to_bits(), 128),
            _ => return false,
        },
        None => match address.parse::<Ipv4Addr>() {
            Ok(ip) => (ip.to_bits().into(), 32),
            Err(_) => return text == "*" || text == "private",
        },
    };
    let Some(len) = len.map_or(Some(all), number) else { return false };
    len <= all && (len..all).all(|bit| bits >> (all - 1 - bit) & 1 == 0)
}

fn check_policy(text: &str) {
    let parsed: Result<Policy, _> = text.parse();
    let mut expected = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let said = rule(line.split('#').next().unwrap_or_default());
        match said {
            Ok(None) => {}
            Ok(Some(rule)) if expected.len() < 32 => expected.push(rule),
            Ok(Some(_)) | Err(()) => {
                return assert_eq!(parsed.map_err(|error| error.line), Err(at + 1), "{line:?}: {said:?}");
            }
        }
    }
    let policy = parsed.unwrap_or_else(|error| panic!("{error}, and every line is in order"));
    let rules = policy.rules().iter().map(|rule| (rule.verdict, rule.ports.low(), rule.ports.high()));
    assert_eq!(rules.collect::<Vec<_>>(), expected);
    let canonical = policy.to_string();
    assert_eq!(canonical.parse().as_ref(), Ok(&policy));
    assert_eq!(canonical.lines().count(), policy.rules().len());

    let summary = policy.summary();
    assert!(summary.windows(2).all(|pair| pair[0].high() < pair[1].low() - 1), "{summary:?}");
    let listed = |port| summary.iter().any(|range| range.contains(port));
    let ports = policy.rules().iter().flat_map(|rule| {
        let (low, high) = (rule.ports.low(), rule.ports.high());
        [low.saturating_sub(1), low, high, high.saturating_add(1)]
    });
    // The addresses that the text names lie in its networks, the others perhaps outside.
    let named = text.split([' ', '\t', '\n']).filter_map(|word| {
        let word = word.rsplit_once(':')?.0;
        word.split('/').next()?.trim_matches(['[', ']']).parse().ok()
    });
    let others = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(9, 9, 9, 9)].map(IpAddr::from);
    let addresses: Vec<IpAddr> = named.chain(others).collect();
    for port in ports.filter(|&port| port != 0) {
        for &ip in &addresses {
            let verdict = policy.decide(SocketAddr::new(ip, port));
            assert!(verdict == Verdict::Reject || listed(port), "{ip} is accepted at {port}, which is not listed");
            if let IpAddr::V4(ip) = ip {
                let mapped = SocketAddr::new(ip.to_ipv6_mapped().into(), port);
                assert_eq!(policy.decide(mapped), verdict, "{mapped}");
            }
        }
    }
}
