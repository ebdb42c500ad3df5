use std::format;
use std::string::ToString;

use proptest::prelude::*;

use super::*;
use crate::wire::testing::{any_ip, any_port_range};

fn any_network() -> impl Strategy<Value = Network> {
    let prefix = (any_ip(), 0..=128u8).prop_filter_map("no network", |(address, len)| {
        let masked = match address {
            IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() & mask_v4(len.min(32))).into(),
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & mask_v6(len)).into(),
        };
        Prefix::new(masked, if masked.is_ipv4() { len.min(32) } else { len }).ok().map(Network::Prefix)
    });
    prop_oneof![Just(Network::Any), Just(Network::Private), prefix]
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let verdict = prop_oneof![Just(Verdict::Accept), Just(Verdict::Reject)];
    (verdict, any_network(), any_port_range()).prop_map(|(verdict, network, ports)| Rule { verdict, network, ports })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    proptest::collection::vec(any_rule(), 0..=RULES_MAX).prop_map(|rules| Policy { rules: rules.into_iter().collect() })
}

fn decide(policy: &Policy, target: &str) -> Verdict {
    policy.decide(target.parse().unwrap())
}

/// An address inside and, where the range's neighbour is public, one just outside of every private range.
const PRIVATE_EDGES: [(&str, &str); 29] = [
    ("0.0.0.0", "1.0.0.0"),
    ("10.255.255.255", "11.0.0.0"),
    ("10.0.0.0", "9.255.255.255"),
    ("100.64.0.1", "100.63.255.255"),
    ("100.127.255.255", "100.128.0.0"),
    ("127.0.0.1", "126.255.255.255"),
    ("127.255.255.254", "128.0.0.0"),
    ("169.254.169.254", "169.253.255.255"),
    ("172.16.0.1", "172.15.255.255"),
    ("172.31.255.255", "172.32.0.0"),
    ("192.0.0.170", "192.0.1.0"),
    ("192.0.2.200", "192.0.3.0"),
    ("192.168.1.1", "192.169.0.0"),
    ("198.19.255.255", "198.20.0.0"),
    ("198.51.100.7", "198.51.101.0"),
    ("203.0.113.7", "203.0.114.0"),
    ("224.0.0.251", "223.255.255.255"),
    ("255.255.255.255", "8.8.8.8"),
    ("::", "2000::1"),
    ("::1", "2a00:1450::1"),
    ("::127.0.0.1", "2606:4700::1111"),
    ("64:ff9b::a00:1", "64:ff9c::1"),
    ("2001:0:4136:e378::1", "2001:200::1"),
    ("2001:db8::1", "2001:db9::1"),
    ("2002:a00:1::1", "2003::1"),
    ("fd00::1", "fbff::1"),
    ("fe80::1", "fe7f::1"),
    ("fec0::1", "fe00::1"),
    ("ff02::1", "2620::1"),
];

#[test]
fn default_rejects_what_is_not_public() {
    let policy = Policy::default();
    for (inside, outside) in PRIVATE_EDGES {
        let (inside, outside): (IpAddr, IpAddr) = (inside.parse().unwrap(), outside.parse().unwrap());
        assert_eq!(policy.decide(SocketAddr::new(inside, 443)), Verdict::Reject, "{inside}");
        assert_eq!(policy.decide(SocketAddr::new(outside, 443)), Verdict::Accept, "{outside}");
        assert_eq!(policy.decide(SocketAddr::new(outside, 25)), Verdict::Reject, "{outside} mail");
        for (address, verdict) in [(inside, Verdict::Reject), (outside, Verdict::Accept)] {
            if let IpAddr::V4(ip) = address {
                let mapped = SocketAddr::new(ip.to_ipv6_mapped().into(), 443);
                assert_eq!(policy.decide(mapped), verdict, "{mapped}");
            }
        }
    }
}

#[test]
fn loopback_policy_adds_only_loopback() {
    let policy = Policy::loopback();
    for target in ["127.0.0.1:80", "127.9.9.9:1", "[::1]:8080", "[::ffff:127.0.0.1]:80", "8.8.8.8:53"] {
        assert_eq!(decide(&policy, target), Verdict::Accept, "{target}");
    }
    for target in ["127.0.0.1:25", "[::1]:25", "10.0.0.1:80", "[fd00::1]:80", "[::2]:80", "8.8.8.8:25"] {
        assert_eq!(decide(&policy, target), Verdict::Reject, "{target}");
    }
}

#[test]
fn first_match_decides_and_the_end_rejects() {
    let policy: Policy = "accept 192.0.2.7:80\nreject 192.0.2.0/24:80-90\naccept *:1-100".parse().unwrap();
    assert_eq!(decide(&policy, "192.0.2.7:80"), Verdict::Accept);
    assert_eq!(decide(&policy, "192.0.2.8:80"), Verdict::Reject);
    assert_eq!(decide(&policy, "192.0.2.8:91"), Verdict::Accept);
    assert_eq!(decide(&policy, "192.0.3.8:80"), Verdict::Accept);
    assert_eq!(decide(&policy, "192.0.3.8:101"), Verdict::Reject);
    assert_eq!(policy.decide(SocketAddr::from(([192, 0, 3, 8], 0))), Verdict::Reject);
    assert_eq!(decide(&Policy::reject_all(), "8.8.8.8:53"), Verdict::Reject);
}

#[test]
fn text_has_comments_and_empty_lines() {
    let policy: Policy = "\n  # nothing inside\n\treject private:* # not here\n\r\naccept\t *:*\r\n".parse().unwrap();
    assert_eq!(policy.to_string(), "reject private:*\naccept *:*\n");
    assert_eq!("".parse(), Ok(Policy::reject_all()));
    assert_eq!(Policy::default().to_string(), "reject private:*\nreject *:25\naccept *:*\n");
}

#[test]
fn errors_name_the_line_and_the_reason() {
    for (rule, reason) in [
        ("accept", RuleError::Syntax),
        ("allow *:*", RuleError::Syntax),
        ("Accept *:*", RuleError::Syntax),
        ("accept *", RuleError::Syntax),
        ("accept example.org:80", RuleError::Network),
        ("accept 10.0.0.0/33:80", RuleError::Network),
        ("accept 10.0.0.0/+8:80", RuleError::Network),
        ("accept 10.0.0.0/:80", RuleError::Network),
        ("accept 10.0.0/8:80", RuleError::Network),
        ("accept [10.0.0.0]/8:80", RuleError::Network),
        ("accept fc00::/7:80", RuleError::Network),
        ("accept [fc00::/7]:80", RuleError::Network),
        ("accept [fc00::/7:80", RuleError::Network),
        ("accept [fc00::]/129:80", RuleError::Network),
        ("accept :80", RuleError::Network),
        ("accept 10.0.0.1/8:80", RuleError::HostBits),
        ("accept [fc00::1]/7:80", RuleError::HostBits),
        ("accept 0.0.0.1/0:80", RuleError::HostBits),
        ("accept [::ffff:0:0]/96:80", RuleError::Mapped),
        ("accept [::ffff:10.0.0.1]:80", RuleError::Mapped),
        ("accept *:0", RuleError::Ports),
        ("accept *:80-", RuleError::Ports),
        ("accept *:http", RuleError::Ports),
        ("accept *:80 443", RuleError::Ports),
    ] {
        let text = format!("reject *:25\n\n{rule}\n");
        assert_eq!(text.parse::<Policy>(), Err(PolicyError { line: 3, reason }), "{rule}");
    }
    let full = "accept *:80\n".repeat(RULES_MAX);
    assert_eq!(full.parse::<Policy>().unwrap().rules().len(), RULES_MAX);
    assert_eq!((full + "accept *:80").parse::<Policy>(), Err(PolicyError { line: 33, reason: RuleError::TooMany }));
}

#[test]
fn summary_lists_what_may_be_accepted() {
    let summary = |text: &str| {
        let ranges = text.parse::<Policy>().unwrap().summary();
        ranges.iter().map(ToString::to_string).collect::<std::vec::Vec<_>>().join(",")
    };
    assert_eq!(summary(&Policy::default().to_string()), "1-24,26-65535");
    assert_eq!(summary(&Policy::loopback().to_string()), "1-24,26-65535");
    assert_eq!(summary(""), "");
    assert_eq!(summary("reject *:*\naccept *:80"), "");
    assert_eq!(summary("reject 10.0.0.0/8:80\naccept *:80\naccept *:81-90"), "80-90");
    assert_eq!(summary("accept 10.0.0.1:22\nreject *:1-1000\naccept *:*"), "22,1001-65535");
    assert_eq!(summary("accept *:1\naccept *:65535"), "1,65535");
    // Ten ranges; the two smallest gaps are closed.
    let ten = "accept *:100\naccept *:200\naccept *:300\naccept *:305\naccept *:400\naccept *:500\naccept *:600\n\
               accept *:700\naccept *:703\naccept *:800";
    assert_eq!(summary(ten), "100,200,300-305,400,500,600,700-703,800");
}

#[test]
fn sizes_are_pinned() {
    assert!(size_of::<Policy>() <= RULES_MAX * 24 + 8, "{}", size_of::<Policy>());
}

proptest! {
    #[test]
    fn text_round_trips(policy in any_policy()) {
        prop_assert_eq!(policy.to_string().parse(), Ok(policy));
    }

    #[test]
    fn summary_covers_every_accepted_port(policy in any_policy(), ip in any_ip(), port in 1..=u16::MAX) {
        let summary = policy.summary();
        prop_assert!(summary.windows(2).all(|pair| pair[0].is_apart_from(pair[1])));
        if policy.decide(SocketAddr::new(ip, port)) == Verdict::Accept {
            prop_assert!(summary.iter().any(|range| range.contains(port)));
        }
        // Not joined, it lists nothing else.
        if summary.len() < EXIT_RANGES_MAX {
            prop_assert_eq!(policy.may_accept(port), summary.iter().any(|range| range.contains(port)));
        }
    }

    #[test]
    fn any_text_is_judged_without_a_panic(text in "(accept|reject|[a-z]{0,3}) ?[\\[\\]*:/0-9a-f.-]{0,20}\n?.{0,10}") {
        if let Ok(policy) = text.parse::<Policy>() {
            prop_assert_eq!(policy.to_string().parse(), Ok(policy));
        }
    }
}
