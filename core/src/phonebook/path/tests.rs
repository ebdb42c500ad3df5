use std::collections::BTreeMap;
use std::string::ToString;
use std::vec::Vec as StdVec;

use proptest::prelude::*;

use super::super::testing::{NOW, Room, assert_uniform, descriptor, exit, in_group, node, rng, shared};
use super::super::{NEW_PLACES, Source, TRIED_PLACES};
use super::*;
use crate::wire::{Descriptor, PortRange, ProtocolVersion};

fn request(hops: u8, last: LastHop) -> PathRequest<'static> {
    PathRequest { hops: HopCount::new(hops).unwrap(), ..PathRequest::new(last, NOW) }
}

const ANY_EXIT: LastHop = LastHop::Exit { port: None };

/// A host that has met these nodes.
fn room_with(descriptors: impl IntoIterator<Item = Descriptor>) -> Room {
    let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
    let mut book = room.book();
    for descriptor in descriptors {
        book.insert(shared(descriptor), Source::Met, NOW).unwrap();
    }
    room
}

fn relay_and_exit(number: u16) -> Descriptor {
    let mut descriptor = exit(number, PortRange::ALL);
    descriptor.roles.relay = true;
    descriptor
}

fn web_exit(number: u16) -> Descriptor {
    exit(number, PortRange::new(80, 443).unwrap())
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
    let mut room = room_with((0..12).map(descriptor).chain(exits));
    let book = room.book();
    let mut guards = Guards::new();
    let mut rng = rng(3);
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
    let mut room = room_with((0..20).map(relay_and_exit));
    let book = room.book();
    let choose = |seed| book.choose_path(&request(4, ANY_EXIT), &mut Guards::new(), &mut rng(seed)).unwrap();
    assert_eq!(choose(1), choose(1));
    assert_ne!(choose(1), choose(2));
}

#[test]
fn four_primordial_nodes_are_enough() {
    let mut room = room_with((0..3).map(descriptor).chain([web_exit(9)]));
    let book = room.book();
    for seed in 0..20 {
        let path = book.choose_path(&request(4, LastHop::Exit { port: Some(443) }), &mut Guards::new(), &mut rng(seed));
        assert_eq!(path.unwrap().hops().last().unwrap().node, node(9));
    }
}

#[test]
fn one_hop_is_the_last_and_needs_no_guard() {
    let mut room = room_with([web_exit(1)]);
    let mut guards = Guards::new();
    let path = room.book().choose_path(&request(1, ANY_EXIT), &mut guards, &mut rng(0)).unwrap();
    assert_eq!(path.hops()[0].node, node(1));
    assert!(guards.nodes().is_empty());
}

#[test]
fn every_last_hop_has_services() {
    let mut room = room_with([descriptor(1), web_exit(2), relay_and_exit(3)]);
    let (book, mut rng) = (room.book(), rng(0));
    let mut drawn = std::collections::BTreeSet::new();
    for _ in 0..100 {
        let path = book.choose_path(&request(1, LastHop::Service), &mut Guards::new(), &mut rng).unwrap();
        drawn.insert(path.hops()[0].node);
    }
    assert_eq!(drawn, (1..4).map(node).collect());
}

#[test]
fn errors_say_what_is_missing() {
    let choose = |descriptors: &[Descriptor], request: &PathRequest<'_>| {
        let mut room = room_with(descriptors.iter().cloned());
        room.book().choose_path(request, &mut Guards::new(), &mut rng(0)).map(|_| ())
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
        (|d| d.valid_from = UnixTime(NOW.0 + 61), PathError::NoLastHop),
        (|d| d.protocol = ProtocolVersion::new(2).unwrap(), PathError::NoLastHop),
        (|d| d.roles.exit = false, PathError::NoLastHop),
        (|d| d.exit_ports = Vec::from_array([PortRange::single(81).unwrap()]), PathError::NoExitForPort(80)),
    ];
    for (spoil, expected) in spoil {
        let mut spoilt = web_exit(1);
        spoil(&mut spoilt);
        let mut room = room_with([spoilt]);
        let error = room
            .book()
            .choose_path(&request(1, LastHop::Exit { port: Some(80) }), &mut Guards::new(), &mut rng(0))
            .unwrap_err();
        assert_eq!(error, expected);
    }
    let mut room = room_with([web_exit(1), web_exit(2)]);
    let avoid = [node(1), node(2)];
    for (avoided, expected) in [(&avoid[..1], Ok(node(2))), (&avoid[..], Err(PathError::NoLastHop))] {
        let request = PathRequest { avoid: avoided, ..request(1, ANY_EXIT) };
        let path = room.book().choose_path(&request, &mut Guards::new(), &mut rng(0));
        assert_eq!(path.map(|path| path.hops()[0].node), expected);
    }
}

#[test]
fn a_last_hop_that_leaves_too_few_relays_is_not_drawn() {
    // With 0 as the exit two relays are left; only 9 leaves three.
    let mut room = room_with([relay_and_exit(0), descriptor(1), descriptor(2), web_exit(9)]);
    for seed in 0..50 {
        let path = room.book().choose_path(&request(4, ANY_EXIT), &mut Guards::new(), &mut rng(seed)).unwrap();
        assert_eq!(path.hops()[3].node, node(9));
    }
    // The relays are in three groups; only the exit in a fourth leaves all of them.
    let crowd = (10..20).map(|n| in_group(web_exit(n), 1));
    let relays = (1..4).map(|n| in_group(descriptor(n), n as u8));
    let mut room = room_with(relays.chain(crowd).chain([web_exit(30)]));
    for strictness in [Strictness::Require, Strictness::Prefer] {
        for seed in 0..50 {
            let request = PathRequest { strictness, ..request(4, ANY_EXIT) };
            let path = room.book().choose_path(&request, &mut Guards::new(), &mut rng(seed)).unwrap();
            assert_eq!(path.hops()[3].node, node(30));
        }
    }
}

#[test]
fn guards_in_the_only_exits_group_are_an_error_only_if_groups_are_required() {
    let relays = (1..4).map(|n| in_group(descriptor(n), 1)).chain((4..8).map(|n| in_group(descriptor(n), n as u8)));
    let mut room = room_with(relays.chain([in_group(web_exit(9), 1)]));
    let guards = Guards::restore([node(1), node(2), node(3)]);
    let wanted = PathRequest { draw_guards: false, ..request(4, ANY_EXIT) };
    let strict = PathRequest { strictness: Strictness::Require, ..wanted };
    let choose =
        |request: &PathRequest<'_>, room: &mut Room| room.book().choose_path(request, &mut guards.clone(), &mut rng(0));
    assert_eq!(choose(&strict, &mut room), Err(PathError::GuardsInGroup));
    let path = choose(&wanted, &mut room).unwrap();
    let groups =
        |path: &Path| path.hops().iter().map(|hop| NetworkGroup::from(hop.address.ip())).collect::<StdVec<_>>();
    let mut others = groups(&path)[1..].to_vec();
    others.sort_unstable();
    others.dedup();
    assert_eq!(others.len(), 3, "the rest is as different as possible");
}

#[test]
fn hops_lead_to_their_descriptors_even_after_moving() {
    let mut room = room_with((0..8).map(relay_and_exit));
    let path = room.book().choose_path(&request(4, ANY_EXIT), &mut Guards::new(), &mut rng(3)).unwrap();
    let find = |room: &mut Room, hop: &PathHop| room.book().descriptor_of(hop).map(Descriptor::node_id);
    for hop in path.hops() {
        assert_eq!(find(&mut room, hop), Some(hop.node));
        let home = &mut room.tried[usize::from(hop.slot.0)];
        std::mem::swap(home, &mut room.new[60]);
        assert_eq!(find(&mut room, hop), Some(hop.node), "moved");
        std::mem::swap(&mut room.tried[usize::from(hop.slot.0)], &mut room.new[60]);
    }
    assert!(room.book().allows(&path, &request(4, ANY_EXIT)));
    assert!(!room.book().allows(&path, &request(3, ANY_EXIT)));
    let avoid = [path.hops()[2].node];
    assert!(!room.book().allows(&path, &PathRequest { avoid: &avoid, ..request(4, ANY_EXIT) }));
    room.book().remove(&avoid[0]);
    assert_eq!(find(&mut room, &path.hops()[2]), None);
    assert!(!room.book().allows(&path, &request(4, ANY_EXIT)));
}

/// A node told of by some other one.
fn hear_of(room: &mut Room, descriptor: Descriptor) {
    let teller = Source::Peer(NetworkGroup::V4([descriptor.identity[2], 1]));
    room.book().insert(shared(descriptor), teller, NOW).unwrap();
}

#[test]
fn nodes_only_heard_of_are_used_as_long_as_too_few_were_met() {
    let met_hops = |room: &mut Room, seed| {
        let path = room.book().choose_path(&request(4, ANY_EXIT), &mut Guards::new(), &mut rng(seed)).unwrap();
        path.hops().iter().map(|hop| room.book().entry_of(hop).unwrap().is_tried()).collect::<StdVec<_>>()
    };
    // Seven relays and an exit were met, hundreds of both were heard of.
    let mut room = room_with((0..7).map(descriptor).chain([web_exit(90)]));
    (100..400).for_each(|number| hear_of(&mut room, descriptor(number)));
    (400..500).for_each(|number| hear_of(&mut room, web_exit(number)));
    let met = |room: &mut Room, place: usize| (0..60).filter(|&seed| met_hops(room, seed)[place]).count();
    assert!((0..4).all(|place| met(&mut room, place) < 10));
    // One relay more, and one exit more, each for itself.
    room.book().insert(shared(descriptor(7)), Source::Met, NOW).unwrap();
    assert!((0..3).all(|place| met(&mut room, place) == 60));
    assert!(met(&mut room, 3) < 10);
    room.book().insert(shared(web_exit(91)), Source::Met, NOW).unwrap();
    assert!((0..4).all(|place| met(&mut room, place) == 60));
    // For a port that neither of these two accepts, others are looked for; a certain node is taken wherever it is.
    hear_of(&mut room, exit(501, PortRange::single(22).unwrap()));
    for last in [LastHop::Exit { port: Some(22) }, LastHop::Node(node(501))] {
        for seed in 0..20 {
            let path = room.book().choose_path(&request(4, last), &mut Guards::new(), &mut rng(seed)).unwrap();
            assert_eq!(path.hops()[3].node, node(501));
            assert!(path.hops()[..3].iter().all(|hop| room.book().entry_of(hop).unwrap().is_tried()));
        }
    }
}

#[test]
fn whom_to_use_is_widened_rather_than_finding_nothing() {
    // Those that were met are all in one group.
    let mut room = room_with((0..9).map(|n| in_group(relay_and_exit(n), 1)));
    let strict = PathRequest { strictness: Strictness::Require, ..request(2, ANY_EXIT) };
    assert!(room.book().choose_path(&strict, &mut Guards::new(), &mut rng(0)).is_err());
    hear_of(&mut room, web_exit(90));
    let path = room.book().choose_path(&strict, &mut Guards::new(), &mut rng(0)).unwrap();
    assert_eq!(path.hops()[1].node, node(90));
}

#[test]
fn whoever_was_met_gives_way_to_another_group_but_never_the_first_hop() {
    // Eight relays were met in two groups, and two exits in a third; others were heard of, in groups of their own.
    let relays = (0..8).map(|n| in_group(descriptor(n), 1 + n as u8 % 2));
    let exits = (90..92).map(|n| in_group(web_exit(n), 3));
    let mut room = room_with(relays.chain(exits));
    let hops = |room: &mut Room, request: &PathRequest<'_>, seed| {
        let path = room.book().choose_path(request, &mut Guards::new(), &mut rng(seed)).unwrap();
        let mut groups: StdVec<_> = path.hops().iter().map(|hop| NetworkGroup::from(hop.address.ip())).collect();
        groups.sort_unstable();
        groups.dedup();
        let book = room.book();
        (groups.len(), path.hops().iter().map(|hop| book.entry_of(hop).unwrap().is_tried()).collect::<StdVec<_>>())
    };
    let wanted = request(4, ANY_EXIT);
    assert!((0..20).all(|seed| hops(&mut room, &wanted, seed) == (3, std::vec![true; 4])), "nobody else is known");
    (100..130).for_each(|number| hear_of(&mut room, in_group(descriptor(number), 3)));
    assert!((0..20).all(|seed| hops(&mut room, &wanted, seed) == (3, std::vec![true; 4])), "they would be no better");
    (200..300).for_each(|number| hear_of(&mut room, relay_and_exit(number)));
    for strictness in [Strictness::Prefer, Strictness::Require] {
        for seed in 0..100 {
            let (groups, met) = hops(&mut room, &PathRequest { strictness, ..wanted }, seed);
            assert_eq!(groups, 4);
            assert!(met[0], "an attacker who fills `new` is no first hop");
            assert_eq!(met.iter().filter(|met| !**met).count(), 1, "and on the path only where there is no other way");
            assert!(met[3], "there are exits that were met");
        }
    }
    let ignore = PathRequest { strictness: Strictness::Ignore, ..wanted };
    assert!((0..50).all(|seed| hops(&mut room, &ignore, seed).1 == [true; 4]));
    // One relay more of a fourth group, and all of it is the way it was.
    room.book().insert(shared(in_group(descriptor(8), 4)), Source::Met, NOW).unwrap();
    let all_met = (0..100).filter(|&seed| hops(&mut room, &wanted, seed) == (4, std::vec![true; 4])).count();
    assert_eq!(all_met, 100);
}

#[test]
fn who_has_met_eight_relays_begins_no_path_elsewhere_even_if_these_have_expired() {
    let brief = (1..9).map(|n| Descriptor { valid_until: NOW, ..relay_and_exit(n) });
    let mut room = room_with(brief.chain([relay_and_exit(0)]));
    (100..200).for_each(|number| hear_of(&mut room, relay_and_exit(number)));
    let now = UnixTime(NOW.0 + 61);
    let wanted = PathRequest { now, ..request(4, ANY_EXIT) };
    for seed in 0..100 {
        let path = room.book().choose_path(&wanted, &mut Guards::new(), &mut rng(seed)).unwrap();
        assert_eq!(path.hops()[0].node, node(0));
    }
    let avoid = [node(0)];
    let error = room.book().choose_path(&PathRequest { avoid: &avoid, ..wanted }, &mut Guards::new(), &mut rng(0));
    assert_eq!(error, Err(PathError::TooFewRelays { known: 0, needed: 3 }));
    // With seven it is one of many.
    room.book().remove(&node(1));
    room.book().remove(&node(2));
    let path = room.book().choose_path(&PathRequest { avoid: &avoid, ..wanted }, &mut Guards::new(), &mut rng(0));
    assert!(!room.book().entry_of(&path.unwrap().hops()[0]).unwrap().is_tried());
}

#[test]
fn a_last_hop_only_heard_of_is_taken_for_its_group_and_guards_stay() {
    // All that was met is in one group, so the last hop has to be another one.
    let mut room = room_with((0..9).map(|n| in_group(relay_and_exit(n), 1)));
    (100..200).for_each(|number| hear_of(&mut room, relay_and_exit(number)));
    let mut guards = Guards::new();
    for seed in 0..100 {
        let path = room.book().choose_path(&request(4, ANY_EXIT), &mut guards, &mut rng(seed)).unwrap();
        let met: StdVec<_> = path.hops().iter().map(|hop| room.book().entry_of(hop).unwrap().is_tried()).collect();
        assert_eq!(met, [true, false, false, false]);
    }
    assert!(guards.nodes().iter().all(|guard| room.book().get(guard).unwrap().is_tried()));
}

#[test]
fn a_constrained_node_uses_only_whom_it_has_met() {
    let mut room = Room::new(0, 32);
    for number in 0..3 {
        room.book().insert(shared(descriptor(number)), Source::Met, NOW).unwrap();
    }
    for number in 10..20 {
        room.book().insert(shared(web_exit(number)), Source::Announced, NOW).unwrap();
    }
    let choose = |room: &mut Room| {
        let path = room.book().choose_path(&request(4, ANY_EXIT), &mut Guards::new(), &mut rng(0));
        path.map(|path| path.hops()[3].node)
    };
    assert_eq!(choose(&mut room), Err(PathError::NoLastHop));
    room.book().insert(shared(web_exit(12)), Source::Met, NOW).unwrap();
    assert_eq!(choose(&mut room), Ok(node(12)));
}

#[test]
fn a_disputed_node_is_on_no_path() {
    let mut room = room_with((0..5).map(descriptor).chain([web_exit(9)]));
    let request = request(4, ANY_EXIT);
    let mut guards = Guards::new();
    let path = room.book().choose_path(&request, &mut guards, &mut rng(1)).unwrap();
    assert!(room.book().allows(&path, &request));
    let disputed = path.hops()[0].node;
    let mut other = room.book().get(&disputed).unwrap().descriptor().clone();
    other.link_key = [0; 32];
    assert!(room.book().insert(shared(other), Source::Announced, NOW).is_err());
    assert!(!room.book().allows(&path, &request));
    for seed in 0..50 {
        let path = room.book().choose_path(&request, &mut guards, &mut rng(seed)).unwrap();
        assert!(!path.contains(&disputed));
    }
    assert!(guards.nodes().contains(&disputed), "it keeps its place as one that is not valid now does");
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
    met: bool,
}

fn any_node() -> impl Strategy<Value = Node> {
    let port = prop_oneof![3 => Just(None), 2 => Just(Some(80)), 1 => Just(Some(22))];
    let met = prop::bool::weighted(0.7);
    (0..6u8, prop::bool::weighted(0.8), port, prop::bool::weighted(0.9), prop::bool::weighted(0.1), met)
        .prop_map(|(group, relay, port, valid, avoided, met)| Node { group, relay, port, valid, avoided, met })
}

proptest! {
    /// A path is found exactly when there is one, and it keeps every rule.
    #[test]
    fn finds_a_path_exactly_when_there_is_one(
        nodes in proptest::collection::vec(any_node(), 0..13),
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
        let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
        for (descriptor, node) in descriptors.zip(&nodes) {
            let source = if node.met { Source::Met } else { Source::Announced };
            room.book().insert(shared(descriptor), source, NOW).unwrap();
        }
        let avoid: StdVec<_> =
            nodes.iter().zip(0..).filter(|(node, _)| node.avoided).map(|(_, number)| node(number)).collect();
        let request = PathRequest { strictness, avoid: &avoid, ..request(hops, LastHop::Exit { port }) };
        let mut guards = Guards::new();
        let result = room.book().choose_path(&request, &mut guards, &mut rng(seed));

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
        // Who has met enough relays begins with no others, though these be too few now.
        let met = |node: &&Node| node.met && node.relay;
        let few_guards = nodes.iter().filter(met).count() >= 8 && usable.iter().copied().filter(met).count() < 8;
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
                prop_assert!(room.book().allows(path, &request));
                let mut groups: StdVec<_> = chosen.iter().map(|(_, node)| node.group).collect();
                groups.sort_unstable();
                groups.dedup();
                if strictness == Strictness::Require || strictness == Strictness::Prefer && possible_apart && !few_guards {
                    prop_assert_eq!(groups.len(), usize::from(hops));
                }
                chosen.sort_unstable_by_key(|(number, _)| *number);
                chosen.dedup_by_key(|(number, _)| *number);
                prop_assert_eq!(chosen.len(), usize::from(hops), "different nodes");
            }
            // Guards are few, and stay what they are for a path that only others could begin.
            Err(PathError::GuardsInGroup) => prop_assert_eq!(strictness, Strictness::Require),
            Err(error) => {
                prop_assert!(!allowed || few_guards, "{}", error);
            }
        }
    }
}
