//! What people write: exit policies, targets, node ids. What is understood has one canonical text, which is understood
//! as the same thing, and a policy's summary never leaves out a port at which the policy accepts something.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use bulbil_core::wire::policy::{Policy, RULES_MAX, Verdict};
use bulbil_core::wire::{NodeId, Target};

/// The input is a text; what is not UTF-8 is cut off.
pub fn check(input: &[u8]) {
    let text = match core::str::from_utf8(input) {
        Ok(text) => text,
        Err(error) => core::str::from_utf8(&input[..error.valid_up_to()]).expect("valid up to there"),
    };
    check_policy(text);
    if let Ok(target) = text.parse::<Target>() {
        assert_eq!(target.to_string().parse(), Ok(target));
        let port = text.rsplit(':').next().unwrap_or_default();
        assert!(text == "phonebook" || port.bytes().all(|byte| byte.is_ascii_digit()), "a port that is no number");
    }
    if let Ok(node) = text.parse::<NodeId>() {
        assert_eq!(node.to_string(), text.to_ascii_lowercase());
    }
}

fn check_policy(text: &str) {
    let policy: Policy = match text.parse() {
        Ok(policy) => policy,
        Err(error) => {
            // Everything before the line at fault is in order, and the line is one of the text's.
            assert!((1..=text.lines().count()).contains(&error.line));
            let before = text.lines().take(error.line - 1).flat_map(|line| [line, "\n"]).collect::<String>();
            return assert!(before.parse::<Policy>().is_ok(), "line {} is not the first at fault", error.line);
        }
    };
    let canonical = policy.to_string();
    assert_eq!(canonical.parse().as_ref(), Ok(&policy));
    assert_eq!(canonical.lines().count(), policy.rules().len());
    assert!(policy.rules().len() <= RULES_MAX);

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
