use std::collections::BTreeMap;
use std::string::ToString;
use std::vec::Vec as StdVec;

use proptest::prelude::*;

use super::super::testing::{NOW, card, descriptor, exit, rng, storage};
use super::super::{Entry, VerifiedDescriptor};
use super::*;
use crate::wire::PortRange;

fn request(hops: u8, last: LastHop) -> PathRequest<'static> {
    PathRequest { hops: HopCount::new(hops).unwrap(), ..PathRequest::new(last, NOW) }
}

const ANY_EXIT: LastHop = LastHop::Exit { port: None };

fn node(number: u16) -> NodeId {
    card(number).node()
}

fn storage_with(descriptors: impl IntoIterator<Item = Descriptor>) -> StdVec<Option<Entry>> {
    let mut entries = storage(64);
    let mut book = Phonebook::new(&mut entries, None);
    for descriptor in descriptors {
        book.insert(VerifiedDescriptor::unchecked(descriptor), NOW).unwrap();
    }
    entries
}

fn book(entries: &mut [Option<Entry>]) -> Phonebook<'_> {
    Phonebook { entries, own: None }
}

/// `descriptor` moved into the network group `10.group`.
fn in_group(mut descriptor: Descriptor, group: u8) -> Descriptor {
    let [.., c, d] = descriptor.identity[..4] else { unreachable!() };
    descriptor.addresses[0].set_ip([10, group, c, d].into());
    descriptor
}

fn relay_and_exit(number: u16) -> Descriptor {
    let mut descriptor = exit(number, PortRange::ALL);
    descriptor.roles.relay = true;
    descriptor
}

fn web_exit(number: u16) -> Descriptor {
    exit(number, PortRange::new(80, 443).unwrap())
}

/// 99.9 % quantiles of chi-squared by degrees of freedom.
fn assert_uniform(counts: &[u32], quantile: f64) {
    let expected = f64::from(counts.iter().sum::<u32>()) / counts.len() as f64;
    let statistic: f64 = counts.iter().map(|&count| (f64::from(count) - expected).powi(2) / expected).sum();
    assert!(statistic < quantile, "{statistic} {counts:?}");
}

#[test]
fn draws_are_uniform() {
    let mut rng = rng(1);
    let mut counts = [0; 20];
    for _ in 0..20_000 {
        counts[draw(0..20usize, &mut rng).unwrap()] += 1;
    }
    assert_uniform(&counts, 43.82);
    assert_eq!(draw(0..0, &mut rng), None);
    assert_eq!(draw([7].into_iter(), &mut rng), Some(7));
}

#[test]
fn every_place_is_uniform_among_the_allowed() {
    const RUNS: u32 = 10_000;
    // Relays 0 to 11, exits 20 to 29, of which five accept the port.
    let exits = (20..30).map(|n| if n < 25 { web_exit(n) } else { exit(n, PortRange::single(22).unwrap()) });
    let mut entries = storage_with((0..12).map(descriptor).chain(exits));
    let book = book(&mut entries);
    let mut guards = Guards::new();
    let mut rng = rng(2);
    let mut places = [const { BTreeMap::new() }; 4];
    for _ in 0..RUNS {
        let path = book.choose_path(&request(4, LastHop::Exit { port: Some(80) }), &mut guards, &mut rng).unwrap();
        for (hop, place) in path.hops().iter().zip(&mut places) {
            *place.entry(hop.node).or_insert(0) += 1;
        }
    }
    let counts = |place: usize| places[place].values().copied().collect::<StdVec<u32>>();
    assert_eq!(places[0].len(), 3);
    assert_uniform(&counts(0), 13.82);
    assert!(places[0].keys().all(|node| guards.nodes().contains(node)));
    assert_eq!(places[3].len(), 5);
    assert_uniform(&counts(3), 18.47);
    for middle in [1, 2] {
        // A guard is in the middle only when another one is first: two thirds as often as the nine other relays.
        assert_eq!(places[middle].len(), 12);
        let (guard, other): (StdVec<_>, StdVec<_>) =
            places[middle].iter().partition(|(node, _)| guards.nodes().contains(node));
        assert_uniform(&guard.iter().map(|(_, count)| **count).collect::<StdVec<_>>(), 13.82);
        assert_uniform(&other.iter().map(|(_, count)| **count).collect::<StdVec<_>>(), 26.12);
        let share = guard.iter().map(|(_, count)| **count).sum::<u32>();
        // Expected 2/11 of the runs; four standard deviations are about 154.
        assert!(share.abs_diff(RUNS * 2 / 11) < 154, "{share}");
    }
}

#[test]
fn same_seed_same_path() {
    let mut entries = storage_with((0..20).map(relay_and_exit));
    let book = book(&mut entries);
    let choose = |seed| book.choose_path(&request(4, ANY_EXIT), &mut Guards::new(), &mut rng(seed)).unwrap();
    assert_eq!(choose(1), choose(1));
    assert_ne!(choose(1), choose(2));
}

#[test]
fn four_primordial_nodes_are_enough() {
    let mut entries = storage_with((0..3).map(descriptor).chain([web_exit(9)]));
    let book = book(&mut entries);
    for seed in 0..20 {
        let path = book.choose_path(&request(4, LastHop::Exit { port: Some(443) }), &mut Guards::new(), &mut rng(seed));
        assert_eq!(path.unwrap().hops().last().unwrap().node, node(9));
    }
}

#[test]
fn one_hop_is_the_last_and_needs_no_guard() {
    let mut entries = storage_with([web_exit(1)]);
    let mut guards = Guards::new();
    let path = book(&mut entries).choose_path(&request(1, ANY_EXIT), &mut guards, &mut rng(0)).unwrap();
    assert_eq!(path.hops()[0].node, node(1));
    assert!(guards.nodes().is_empty());
}

#[test]
fn errors_say_what_is_missing() {
    let choose = |descriptors: &[Descriptor], request: &PathRequest<'_>| {
        let mut entries = storage_with(descriptors.iter().cloned());
        book(&mut entries).choose_path(request, &mut Guards::new(), &mut rng(0)).map(|_| ())
    };
    let port_22 = LastHop::Exit { port: Some(22) };
    assert_eq!(choose(&[], &request(4, ANY_EXIT)), Err(PathError::NoLastHop));
    assert_eq!(choose(&[], &request(4, LastHop::Service)), Err(PathError::NoLastHop));
    assert_eq!(choose(&[descriptor(1)], &request(1, ANY_EXIT)), Err(PathError::NoLastHop));
    assert_eq!(choose(&[web_exit(1)], &request(1, port_22)), Err(PathError::NoExitForPort(22)));
    assert_eq!(choose(&[web_exit(1)], &request(1, LastHop::Node(node(2)))), Err(PathError::UnknownNode));
    let few = [descriptor(1), descriptor(2), web_exit(3)];
    assert_eq!(choose(&few, &request(4, ANY_EXIT)), Err(PathError::TooFewRelays { known: 2, needed: 3 }));
    let only_as_one_of_both = [relay_and_exit(1), descriptor(2), descriptor(3)];
    let error = PathError::TooFewRelays { known: 2, needed: 3 };
    assert_eq!(choose(&only_as_one_of_both, &request(4, ANY_EXIT)), Err(error));
    assert_eq!(error.to_string(), "2 relays known, 3 needed");
    let crowded = [1, 2, 3].map(|n| in_group(descriptor(n), n as u8 / 2)).into_iter().chain([web_exit(9)]);
    let strict = PathRequest { strictness: Strictness::Require, ..request(4, ANY_EXIT) };
    let crowded: StdVec<_> = crowded.collect();
    assert_eq!(choose(&crowded, &strict), Err(PathError::TooFewGroups { known: 2, needed: 3 }));
    assert_eq!(choose(&crowded, &request(4, ANY_EXIT)), Ok(()), "a preference is no requirement");
}

#[test]
fn nodes_that_cannot_be_used_are_not() {
    type Spoil = fn(&mut Descriptor);
    let spoil: [(Spoil, PathError); 4] = [
        (|d| d.valid_from = UnixTime(NOW.0 + 61), PathError::NoExitForPort(80)),
        (|d| d.protocol = ProtocolVersion::new(2).unwrap(), PathError::NoExitForPort(80)),
        (|d| d.roles.exit = false, PathError::NoLastHop),
        (|d| d.exit_ports = Vec::from_array([PortRange::single(81).unwrap()]), PathError::NoExitForPort(80)),
    ];
    for (spoil, expected) in spoil {
        let mut spoilt = web_exit(1);
        spoil(&mut spoilt);
        let mut entries = storage_with([spoilt]);
        let error = book(&mut entries)
            .choose_path(&request(1, LastHop::Exit { port: Some(80) }), &mut Guards::new(), &mut rng(0))
            .unwrap_err();
        assert_eq!(error, expected);
    }
    let mut entries = storage_with([web_exit(1), web_exit(2)]);
    let avoid = [node(1), node(2)];
    for (avoided, expected) in [(&avoid[..1], Ok(node(2))), (&avoid[..], Err(PathError::NoLastHop))] {
        let request = PathRequest { avoid: avoided, ..request(1, ANY_EXIT) };
        let path = book(&mut entries).choose_path(&request, &mut Guards::new(), &mut rng(0));
        assert_eq!(path.map(|path| path.hops()[0].node), expected);
    }
}

#[test]
fn a_last_hop_that_leaves_too_few_relays_is_not_drawn() {
    // With 0 as the exit two relays are left; only 9 leaves three.
    let mut entries = storage_with([relay_and_exit(0), descriptor(1), descriptor(2), web_exit(9)]);
    for seed in 0..50 {
        let path = book(&mut entries).choose_path(&request(4, ANY_EXIT), &mut Guards::new(), &mut rng(seed)).unwrap();
        assert_eq!(path.hops()[3].node, node(9));
    }
    // The relays are in three groups; only the exit in a fourth leaves all of them.
    let crowd = (10..20).map(|n| in_group(web_exit(n), 1));
    let relays = (1..4).map(|n| in_group(descriptor(n), n as u8));
    let mut entries = storage_with(relays.chain(crowd).chain([web_exit(30)]));
    for strictness in [Strictness::Require, Strictness::Prefer] {
        for seed in 0..50 {
            let request = PathRequest { strictness, ..request(4, ANY_EXIT) };
            let path = book(&mut entries).choose_path(&request, &mut Guards::new(), &mut rng(seed)).unwrap();
            assert_eq!(path.hops()[3].node, node(30));
        }
    }
}

#[test]
fn guards_in_the_only_exits_group_are_an_error_only_if_groups_are_required() {
    let relays = (1..4).map(|n| in_group(descriptor(n), 1)).chain((4..8).map(|n| in_group(descriptor(n), n as u8)));
    let mut entries = storage_with(relays.chain([in_group(web_exit(9), 1)]));
    let guards = Guards::restore([node(1), node(2), node(3)]);
    let strict = PathRequest { strictness: Strictness::Require, ..request(4, ANY_EXIT) };
    let choose = |request: &PathRequest<'_>, entries: &mut [Option<Entry>]| {
        book(entries).choose_path(request, &mut guards.clone(), &mut rng(0))
    };
    assert_eq!(choose(&strict, &mut entries), Err(PathError::GuardsInGroup));
    let path = choose(&request(4, ANY_EXIT), &mut entries).unwrap();
    let groups =
        |path: &Path| path.hops().iter().map(|hop| NetworkGroup::from(hop.address.ip())).collect::<StdVec<_>>();
    let mut others = groups(&path)[1..].to_vec();
    others.sort_unstable();
    others.dedup();
    assert_eq!(others.len(), 3, "the rest is as different as possible");
}

#[test]
fn hops_lead_to_their_descriptors_even_after_moving() {
    let mut entries = storage_with((0..8).map(relay_and_exit));
    let path = book(&mut entries).choose_path(&request(4, ANY_EXIT), &mut Guards::new(), &mut rng(3)).unwrap();
    let find = |entries: &mut [Option<Entry>], hop: &PathHop| book(entries).descriptor_of(hop).map(Descriptor::node_id);
    for hop in path.hops() {
        assert_eq!(find(&mut entries, hop), Some(hop.node));
        let home = hop.slot;
        entries.swap(home, 60);
        assert_eq!(find(&mut entries, hop), Some(hop.node), "moved");
        entries.swap(home, 60);
    }
    assert!(book(&mut entries).allows(&path, &request(4, ANY_EXIT)));
    assert!(!book(&mut entries).allows(&path, &request(3, ANY_EXIT)));
    let avoid = [path.hops()[2].node];
    assert!(!book(&mut entries).allows(&path, &PathRequest { avoid: &avoid, ..request(4, ANY_EXIT) }));
    book(&mut entries).remove(&avoid[0]);
    assert_eq!(find(&mut entries, &path.hops()[2]), None);
    assert!(!book(&mut entries).allows(&path, &request(4, ANY_EXIT)));
}

#[test]
fn targets_decide_about_the_last_hop() {
    let last = |text: &str| LastHop::from(&text.parse::<Target>().unwrap());
    assert_eq!(last("example.org:443"), LastHop::Exit { port: Some(443) });
    assert_eq!(last("192.0.2.1:80"), LastHop::Exit { port: Some(80) });
    assert_eq!(last("phonebook"), LastHop::Service);
    assert_eq!(HopCount::new(0), None);
    assert_eq!(HopCount::new(5), None);
    assert_eq!(HopCount::default().value(), 4);
}

#[test]
fn sizes_are_pinned() {
    assert!(size_of::<Path>() <= 304, "{}", size_of::<Path>());
}

#[derive(Debug, Clone)]
struct Node {
    group: u8,
    relay: bool,
    port: Option<u16>,
    valid: bool,
    avoided: bool,
}

fn any_node() -> impl Strategy<Value = Node> {
    let port = prop_oneof![3 => Just(None), 2 => Just(Some(80)), 1 => Just(Some(22))];
    (0..6u8, prop::bool::weighted(0.8), port, prop::bool::weighted(0.9), prop::bool::weighted(0.1))
        .prop_map(|(group, relay, port, valid, avoided)| Node { group, relay, port, valid, avoided })
}

proptest! {
    /// A path is found exactly when there is one, and it keeps every rule.
    #[test]
    fn finds_a_path_exactly_when_there_is_one(
        nodes in proptest::collection::vec(any_node(), 0..9),
        hops in 1..=4u8,
        port in prop_oneof![Just(None), Just(Some(80)), Just(Some(22))],
        strictness in prop_oneof![Just(Strictness::Prefer), Just(Strictness::Require), Just(Strictness::Ignore)],
        seed in any::<u64>(),
    ) {
        let descriptors = nodes.iter().zip(0..).map(|(node, number)| {
            let mut descriptor = in_group(descriptor(number), node.group);
            descriptor.roles.relay = node.relay;
            descriptor.roles.exit = node.port.is_some();
            descriptor.exit_ports = node.port.and_then(PortRange::single).into_iter().collect();
            if !node.valid {
                descriptor.valid_from = UnixTime(NOW.0 + 1000);
            }
            descriptor
        });
        let mut entries = storage_with(descriptors);
        let avoid: StdVec<_> =
            nodes.iter().zip(0..).filter(|(node, _)| node.avoided).map(|(_, number)| node(number)).collect();
        let request = PathRequest { strictness, avoid: &avoid, ..request(hops, LastHop::Exit { port }) };
        let mut guards = Guards::new();
        let result = book(&mut entries).choose_path(&request, &mut guards, &mut rng(seed));

        let usable: StdVec<_> = nodes.iter().filter(|node| node.valid && !node.avoided).collect();
        let exits = |node: &Node| node.port.is_some() && (port.is_none() || node.port == port);
        let mut possible = false;
        let mut possible_apart = false;
        for (index, _) in usable.iter().enumerate().filter(|(_, node)| exits(node)) {
            let relays = usable.iter().enumerate().filter(|&(other, node)| other != index && node.relay);
            possible |= relays.clone().count() >= usize::from(hops) - 1;
            let mut groups: StdVec<_> =
                relays.map(|(_, node)| node.group).filter(|&group| group != usable[index].group).collect();
            groups.sort_unstable();
            groups.dedup();
            possible_apart |= groups.len() >= usize::from(hops) - 1;
        }
        let allowed = if strictness == Strictness::Require { possible_apart } else { possible };
        match &result {
            Ok(path) => {
                prop_assert!(allowed);
                prop_assert_eq!(path.hops().len(), usize::from(hops));
                let mut chosen: StdVec<_> = path
                    .hops()
                    .iter()
                    .map(|hop| (0..).zip(&nodes).find(|(number, _)| node(*number) == hop.node).unwrap())
                    .collect();
                prop_assert!(chosen.iter().all(|(_, node)| node.valid && !node.avoided));
                let (last, before_last) = chosen.split_last().unwrap();
                prop_assert!(exits(last.1) && before_last.iter().all(|(_, node)| node.relay));
                prop_assert!(hops == 1 || guards.nodes().contains(&path.hops()[0].node));
                prop_assert!(book(&mut entries).allows(path, &request));
                let mut groups: StdVec<_> = chosen.iter().map(|(_, node)| node.group).collect();
                groups.sort_unstable();
                groups.dedup();
                if strictness == Strictness::Require || strictness == Strictness::Prefer && possible_apart {
                    prop_assert_eq!(groups.len(), usize::from(hops));
                }
                chosen.sort_unstable_by_key(|(number, _)| *number);
                chosen.dedup_by_key(|(number, _)| *number);
                prop_assert_eq!(chosen.len(), usize::from(hops), "different nodes");
            }
            Err(error) => {
                prop_assert!(!allowed, "{}", error);
            }
        }
    }
}
