use std::collections::HashMap;
use std::vec::Vec;

use proptest::prelude::*;

use super::super::testing::{Card, NOW, Room, card, descriptor, in_group, later, node, numbered, shared, with};
use super::super::{BUCKET, Epoch, FAILURES_MAX, FAILURES_MAX_UNMET, NEW_PLACES, TRIED_PLACES};
use super::*;
use crate::wire::Descriptor;

const PEER: Source = Source::Peer(NetworkGroup::V4([9, 9]));

#[test]
fn only_a_newer_sequence_replaces() {
    let mut room = Room::new(2, 2);
    let mut book = room.book();
    assert!(book.is_empty());
    for source in [PEER, Source::Announced, Source::Stored] {
        book.remove(&node(1));
        assert_eq!(book.insert(with(1, |d| d.sequence = 5), source, NOW), Ok(Inserted::Added));
        assert_eq!(book.insert(with(1, |d| d.sequence = 5), source, NOW), Err(Refusal::NotNewer));
        assert_eq!(book.insert(with(1, |d| d.sequence = 4), source, NOW), Err(Refusal::NotNewer));
        assert_eq!(book.insert(with(1, |d| d.sequence = 6), source, NOW), Ok(Inserted::Updated));
        assert_eq!(book.get(&node(1)).unwrap().descriptor().sequence, 6);
        assert_eq!(book.get(&node(1)).unwrap().source(), source);
    }
    assert_eq!((book.len(), book.capacity()), (1, 4));
}

#[test]
fn own_and_expired_descriptors_are_refused() {
    let mut room = Room::new(2, 2);
    let mut book = room.book();
    book.own = Some(node(1));
    for source in [PEER, Source::Met] {
        assert_eq!(book.insert(with(1, |_| ()), source, NOW), Err(Refusal::Own));
        assert_eq!(book.insert(with(2, |d| d.valid_until = UnixTime(NOW.0 - 61)), source, NOW), Err(Refusal::Expired));
    }
    assert!(book.is_empty());
}

#[test]
fn expired_then_failing_then_surplus_then_the_lot_decide_who_gives_way() {
    let mut room = Room::new(1, 5);
    let mut book = room.book();
    // The first of these keep their places longest.
    let mut lots: Vec<u16> = (10..20).collect();
    lots.sort_unstable_by_key(|&number| book.key.lot(&node(number)));
    let long_ago = UnixTime(NOW.0 - 4000);
    book.insert(with(9, |_| ()), Source::Met, long_ago).unwrap();
    // 1 waits for the place of 9, 2 has failed, 3 expires soon, 4 was met as well, but nobody is asked for its sake.
    book.insert(with(1, |_| ()), Source::Met, NOW).unwrap();
    book.insert(with(2, |_| ()), PEER, NOW).unwrap();
    book.insert(with(3, |d| d.valid_until = NOW), PEER, NOW).unwrap();
    book.insert(with(4, |_| ()), Source::Met, NOW).unwrap();
    book.insert(with(lots[5], |_| ()), PEER, NOW).unwrap();
    book.record_failure(&node(2), true, NOW);
    let now = later(61);
    let eager = |number| with(number, |d| (d.valid_from, d.valid_until) = (now, later(u32::MAX.into())));
    assert_eq!(book.insert(eager(lots[4]), PEER, now), Ok(Inserted::Evicted(node(3))));
    assert_eq!(book.insert(eager(lots[9]), PEER, now), Ok(Inserted::Evicted(node(2))));
    assert_eq!(book.insert(eager(lots[8]), PEER, now), Ok(Inserted::Evicted(node(4))));
    assert_eq!(book.insert(eager(lots[7]), PEER, now), Ok(Inserted::Evicted(node(lots[9]))));
    assert_eq!(book.insert(eager(lots[9]), PEER, now), Err(Refusal::Full), "whatever time it claims");
    for (better, worse) in [(0, 8), (1, 7), (2, 5), (3, 4)] {
        assert_eq!(book.insert(eager(lots[better]), PEER, now), Ok(Inserted::Evicted(node(lots[worse]))));
    }
    assert_eq!(book.counts(), Counts { tried: 1, new: 5, disputed: 0, pinned: 0 });
    assert!(book.get(&node(1)).is_some() && book.get(&node(9)).unwrap().is_tried());
}

#[test]
fn pinned_nodes_never_give_way() {
    let mut room = Room::new(1, 2);
    let mut book = room.book();
    book.insert(with(1, |d| d.valid_until = NOW), PEER, NOW).unwrap();
    book.insert(with(2, |d| d.valid_until = NOW), PEER, NOW).unwrap();
    assert!(book.set_pinned(&node(1), true));
    assert!(!book.set_pinned(&node(9), true));
    let mut now = later(1000);
    assert_eq!(book.insert(with(3, |_| ()), PEER, now), Ok(Inserted::Evicted(node(2))));
    for _ in 0..FAILURES_MAX + 1 {
        now = UnixTime(now.0 + 3840);
        assert!(!book.record_failure(&node(1), true, now));
    }
    book.remove_expired(now);
    assert!(book.get(&node(1)).unwrap().is_pinned());
    book.set_pinned(&node(3), true);
    assert_eq!(book.insert(with(4, |_| ()), PEER, now), Err(Refusal::Full));
    book.set_pinned(&node(1), false);
    assert_eq!(book.insert(with(4, |_| ()), PEER, now), Ok(Inserted::Evicted(node(1))));

    // Nor in `tried`, and the owner answers for where they are.
    let mut room = Room::new(1, 1);
    let mut book = room.book();
    book.insert(with(1, |_| ()), Source::Met, NOW).unwrap();
    book.set_pinned(&node(1), true);
    book.insert(with(2, |_| ()), Source::Met, NOW).unwrap();
    assert!(book.get(&node(1)).unwrap().is_tried() && !book.get(&node(2)).unwrap().is_tried());
    assert_eq!(book.swaps().count(), 0);
    let moved = with(1, |d| (d.sequence, d.addresses[0]) = (2, "192.0.2.1:1".parse().unwrap()));
    assert_eq!(book.insert(moved, PEER, NOW), Ok(Inserted::Updated));
    assert!(book.get(&node(1)).unwrap().is_tried());
    assert_eq!(book.get(&node(1)).unwrap().group(), NetworkGroup::V4([192, 0]));
}

#[test]
fn expired_nodes_are_removed_unless_the_clock_is_in_doubt() {
    let mut room = Room::new(2, 2);
    let mut book = room.book();
    book.insert(with(1, |d| d.valid_until = NOW), Source::Met, NOW).unwrap();
    book.insert(with(2, |d| d.valid_until = NOW), PEER, NOW).unwrap();
    book.insert(with(3, |_| ()), Source::Met, NOW).unwrap();
    book.remove_expired(later(60));
    assert_eq!(book.len(), 3, "within the grace");
    book.set_clock_in_doubt(true);
    book.remove_expired(later(61));
    book.remove_expired(later(1_000_000));
    assert_eq!(book.len(), 3);
    // Nor does an expired one give way for that: only the lot counts.
    let lot = |number: u16| book.key.lot(&node(number));
    let better = (10..).find(|&number| lot(number) < lot(2)).unwrap();
    let worse = (10..).find(|&number| lot(number) > lot(2)).unwrap();
    book.insert(with(better, |_| ()), PEER, later(61)).unwrap();
    assert_eq!(book.insert(with(worse, |_| ()), PEER, later(61)), Err(Refusal::Full));
    book.set_clock_in_doubt(false);
    book.remove_expired(later(61));
    let mut left: Vec<_> = book.iter().map(Entry::node).collect();
    left.sort_unstable();
    let mut expected = [1, 3, better].map(node);
    expected.sort_unstable();
    assert_eq!(left, expected, "1 was met, and so waits for a test");
}

#[test]
fn a_constrained_node_forgets_nobody_whom_it_has_met_either() {
    let epoch = Epoch::at(later(61));
    let mut ranked: Vec<u16> = (0..20).collect();
    ranked.sort_unstable_by_key(|&number| epoch.rank(&node(number)));
    let mut room = Room::new(0, 2);
    let mut book = room.book();
    let brief = |number| with(number, |d| d.valid_until = NOW);
    book.insert(brief(ranked[3]), Source::Met, NOW).unwrap();
    book.insert(brief(ranked[0]), PEER, NOW).unwrap();
    assert_eq!(book.insert(with(ranked[9], |_| ()), PEER, later(61)), Ok(Inserted::Evicted(node(ranked[0]))));
    assert_eq!(book.insert(with(ranked[5], |_| ()), PEER, later(61)), Ok(Inserted::Evicted(node(ranked[9]))));
    book.remove_expired(later(61));
    assert_eq!(book.len(), 2);
    assert_eq!(book.next_test(later(61), &mut super::super::testing::rng(1)).map(|_| ()), Some(()));
    // Its rank is what it gives way for, as any other's.
    assert_eq!(book.insert(with(ranked[4], |_| ()), PEER, later(61)), Ok(Inserted::Evicted(node(ranked[5]))));
    assert_eq!(book.insert(with(ranked[1], |_| ()), PEER, later(61)), Ok(Inserted::Evicted(node(ranked[4]))));
    assert_eq!(book.insert(with(ranked[2], |_| ()), PEER, later(61)), Ok(Inserted::Evicted(node(ranked[3]))));
}

#[test]
fn no_capacity_means_full() {
    let mut room = Room::new(0, 0);
    let mut book = room.book();
    assert_eq!(book.insert(with(1, |_| ()), PEER, NOW), Err(Refusal::Full));
    assert_eq!(book.insert(with(1, |_| ()), Source::Met, NOW), Err(Refusal::Full));
    let mut room = Room::new(1, 0);
    let mut book = room.book();
    assert_eq!(book.insert(with(1, |_| ()), PEER, NOW), Err(Refusal::Full));
    assert_eq!(book.insert(with(1, |_| ()), Source::Met, NOW), Ok(Inserted::Added));
    assert_eq!(book.insert(with(2, |_| ()), Source::Met, NOW), Err(Refusal::Full));
}

#[test]
fn who_is_met_is_tried_until_somebody_says_that_it_has_moved() {
    let mut room = Room::new(64, 64);
    let mut book = room.book();
    let moved = |sequence| with(1, |d| (d.sequence, d.addresses[0]) = (sequence, "192.0.2.1:1".parse().unwrap()));
    book.insert(with(1, |_| ()), PEER, NOW).unwrap();
    assert!(!book.get(&node(1)).unwrap().is_tried());
    assert_eq!(book.get(&node(1)).unwrap().last_met(), None);
    assert_eq!(book.insert(with(1, |_| ()), Source::Met, later(5)), Ok(Inserted::Met));
    let entry = book.get(&node(1)).unwrap();
    assert!(entry.is_tried());
    assert_eq!((entry.last_met(), entry.source()), (Some(later(5)), PEER), "the source is who told first");
    // A newer descriptor with the same address changes nothing about that, one with another address does.
    assert_eq!(book.insert(with(1, |d| d.sequence = 2), Source::Announced, NOW), Ok(Inserted::Updated));
    assert!(book.get(&node(1)).unwrap().is_tried());
    assert_eq!(book.insert(moved(3), Source::Announced, NOW), Ok(Inserted::Updated));
    let entry = book.get(&node(1)).unwrap();
    assert_eq!((entry.is_tried(), entry.last_met(), entry.source()), (false, None, Source::Announced));
    assert_eq!(book.counts(), Counts { new: 1, ..Counts::default() });
    // It is met with an old descriptor at the old address: that is not where it says that it is.
    assert_eq!(book.insert(with(1, |d| d.sequence = 2), Source::Met, NOW), Err(Refusal::NotNewer));
    assert!(!book.get(&node(1)).unwrap().is_tried());
    // With an old one at the new address it is there, whatever else it says.
    assert_eq!(book.insert(moved(1), Source::Met, NOW), Ok(Inserted::Met));
    assert!(book.get(&node(1)).unwrap().is_tried());
    assert_eq!(book.get(&node(1)).unwrap().descriptor().sequence, 3);
    // It moves again, and tells itself.
    assert_eq!(book.insert(with(1, |d| d.sequence = 4), Source::Met, NOW), Ok(Inserted::Updated));
    assert!(book.get(&node(1)).unwrap().is_tried());
    assert_eq!(book.len(), 1);
}

#[test]
fn a_move_into_a_full_bucket_is_refused_and_nothing_changes() {
    let mut room = Room::new(1, 1);
    let mut book = room.book();
    book.insert(with(1, |_| ()), Source::Met, NOW).unwrap();
    book.insert(with(2, |d| d.valid_from = UnixTime(NOW.0)), PEER, NOW).unwrap();
    let moved = with(1, |d| (d.sequence, d.addresses[0]) = (2, "192.0.2.1:1".parse().unwrap()));
    assert_eq!(book.insert(moved, PEER, NOW), Err(Refusal::Full));
    assert_eq!(book.get(&node(1)).unwrap().descriptor().sequence, 1);
    assert!(book.get(&node(1)).unwrap().is_tried());
}

/// The buckets of each shelf in which `two` differs from `one`.
fn changed_buckets(one: &Room, two: &Room) -> [usize; 2] {
    let nodes =
        |places: &[Option<Entry<Card>>]| places.iter().map(|place| place.as_ref().map(Entry::node)).collect::<Vec<_>>();
    [(&one.tried, &two.tried), (&one.new, &two.new)].map(|(one, two)| {
        let (one, two) = (nodes(one), nodes(two));
        one.chunks(BUCKET).zip(two.chunks(BUCKET)).filter(|(one, two)| one != two).count()
    })
}

#[test]
fn a_source_with_100_000_descriptors_changes_its_share_of_the_buckets() {
    let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
    let mut book = room.book();
    for number in 0..3000 {
        let teller = NetworkGroup::V4([(number % 40) as u8, 1]);
        let _full = book.insert(with(number, |d| d.sequence = 7), Source::Peer(teller), NOW);
        if number % 3 == 0 {
            let _full = book.insert(with(number, |d| d.sequence = 7), Source::Met, NOW);
        }
    }
    let before = room.clone();
    let mut book = room.book();
    let mut refused = 0;
    for number in 0..100_000u32 {
        // From as many groups as there are.
        let descriptor = numbered(number.wrapping_mul(0x9e37_79b1));
        refused += u32::from(book.insert(shared(descriptor), PEER, NOW) == Err(Refusal::Full));
    }
    // What comes later needs an ever better lot: 32 (1 + 1/2 + ... + 1/n) of n newcomers to a bucket find a place at all.
    assert!(refused > 98_000, "{refused}");
    assert_eq!(changed_buckets(&before, &room), [0, 8]);
}

#[test]
fn a_group_reaches_four_buckets_of_tried() {
    let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
    let before = room.clone();
    let mut book = room.book();
    for number in 0..4000 {
        let _full = book.insert(shared(in_group(descriptor(number), 1)), Source::Met, NOW);
    }
    assert_eq!(book.counts().tried, 4 * BUCKET);
    assert!(book.swaps().count() <= 8);
    // Their source is their own group, so they reach one bucket of `new`.
    assert_eq!(changed_buckets(&before, &room), [4, 1]);
}

#[test]
fn many_groups_fill_all_of_tried() {
    let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
    let mut book = room.book();
    for number in 0..2000 {
        book.insert(with(number, |_| ()), Source::Met, NOW).unwrap();
    }
    assert_eq!(book.counts().tried, 2000, "half full, no bucket overflows");
}

#[test]
fn another_key_is_another_order() {
    let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
    let mut other = room.clone();
    let mut other_book = Phonebook::new(other.shelves(), None, BookKey::new([8; 32]), Grouping::Network);
    let mut book = room.book();
    for number in 0..50 {
        book.insert(with(number, |_| ()), PEER, NOW).unwrap();
        other_book.insert(with(number, |_| ()), PEER, NOW).unwrap();
    }
    assert_ne!(changed_buckets(&room, &other), [0, 0]);
}

#[test]
fn a_constrained_node_keeps_the_epoch_sample() {
    let mut room = Room::new(0, 8);
    let mut book = room.book();
    for number in 0..300 {
        // Five nodes in each group.
        let _rank_too_high = book.insert(shared(in_group(descriptor(number), (number % 60) as u8)), PEER, NOW);
    }
    let epoch = Epoch::at(NOW);
    let mut all: Vec<_> = (0..300u16).map(|number| (epoch.rank(&node(number)), number)).collect();
    all.sort_unstable();
    let mut groups = Vec::new();
    all.retain(|(_, number)| {
        let first = !groups.contains(&(number % 60));
        groups.push(number % 60);
        first
    });
    let mut expected: Vec<_> = all[..8].iter().map(|(_, number)| node(*number)).collect();
    let mut kept: Vec<_> = book.iter().map(Entry::node).collect();
    expected.sort_unstable();
    kept.sort_unstable();
    assert_eq!(kept, expected);
    // In place of a pinned one nothing comes, and its group may come twice.
    let pinned = all[7].1;
    book.set_pinned(&node(pinned), true);
    let neighbour = (0..300).find(|number| number % 60 == pinned % 60 && *number != pinned).unwrap();
    book.remove(&node(all[0].1));
    assert_eq!(
        book.insert(shared(in_group(descriptor(neighbour), (pinned % 60) as u8)), PEER, NOW),
        Ok(Inserted::Added)
    );
    // Whoever is met is so in place.
    assert_eq!(book.counts().tried, 0);
    assert_eq!(
        book.insert(shared(in_group(descriptor(pinned), (pinned % 60) as u8)), Source::Met, NOW),
        Ok(Inserted::Met)
    );
    assert!(book.get(&node(pinned)).unwrap().is_tried());
}

#[test]
fn memory_is_what_the_types_say() {
    assert_eq!(size_of::<Option<Entry<Card>>>(), size_of::<Card>() + 32);
    assert_eq!(size_of::<Option<Entry>>(), size_of::<VerifiedDescriptor>() + 32);
    assert!(size_of::<Option<Entry>>() <= 2048, "{}", size_of::<Option<Entry>>());
    assert!(size_of::<Phonebook<'_>>() <= 136, "{}", size_of::<Phonebook<'_>>());
    assert_eq!(size_of::<Option<Evidence<Card>>>(), 2 * size_of::<Card>() + size_of::<UnixTime>());
}

#[test]
fn the_constrained_form_holds_descriptors_themselves() {
    let mut places = [const { None }; 2];
    let shelves = Shelves { tried: &mut [], new: &mut places, evidence: &mut [] };
    let mut book: Phonebook<'_> = Phonebook::new(shelves, None, BookKey::new([0; 32]), Grouping::Network);
    assert_eq!(book.insert(card(1), Source::Met, NOW), Ok(Inserted::Added));
    let mut other = descriptor(1);
    other.link_key = [9; 32];
    let refused = book.insert(VerifiedDescriptor::unchecked(other), Source::Met, NOW);
    assert_eq!(refused, Err(Refusal::Disputed), "without a place for evidence, too");
    assert_eq!(book.counts(), Counts { tried: 1, disputed: 1, ..Counts::default() });
}

#[derive(Debug, Clone)]
enum Step {
    Insert { number: u16, sequence: u64, variant: u8, port: u16, life: u64, met: bool },
    Remove(u16),
    Fail(u16),
    Succeed(u16),
    Pin(u16, bool),
    Wait(u64),
    Expire,
}

fn any_step() -> impl Strategy<Value = Step> {
    let insert = (0..7u16, 1..4u64, 0..2u8, 1..3u16, 0..2u64, any::<bool>());
    prop_oneof![
        6 => insert.prop_map(|(number, sequence, variant, port, life, met)| {
            Step::Insert { number, sequence, variant, port, life: 1 + life * 5000, met }
        }),
        1 => (0..7u16).prop_map(Step::Remove),
        4 => (0..7u16).prop_map(Step::Fail),
        1 => (0..7u16).prop_map(Step::Succeed),
        1 => (0..7u16, any::<bool>()).prop_map(|(number, pinned)| Step::Pin(number, pinned)),
        3 => (0..700u64).prop_map(Step::Wait),
        1 => Just(Step::Expire),
    ]
}

fn made(number: u16, sequence: u64, variant: u8, port: u16, until: UnixTime) -> Descriptor {
    let mut descriptor = descriptor(number);
    (descriptor.sequence, descriptor.link_key, descriptor.valid_until) = (sequence, [variant; 32], until);
    descriptor.addresses[0].set_port(port);
    descriptor
}

/// A node as the reference knows it.
#[derive(Debug, Clone, PartialEq)]
struct Known {
    sequence: u64,
    content: (u8, u16, UnixTime),
    until: UnixTime,
    met: Option<UnixTime>,
    failures: u8,
    last_failure: UnixTime,
    pinned: bool,
    disputed: bool,
}

#[derive(Debug, Default)]
struct Reference {
    nodes: HashMap<u16, Known>,
    /// Until when nothing is believed about a node.
    disputes: HashMap<u16, UnixTime>,
}

impl Reference {
    fn lift(&mut self, now: UnixTime, number: Option<u16>) {
        let over = |until: UnixTime| until.0 + 60 < now.0;
        let meant = |other: u16| number.is_none_or(|number| number == other);
        self.disputes.retain(|&other, until| !(meant(other) && over(*until)));
        self.nodes.retain(|&other, known| {
            let gone = meant(other) && over(known.until) && (known.disputed || number.is_none() && known.met.is_none());
            if gone && known.pinned {
                known.disputed = false;
            }
            !gone || known.pinned
        });
    }

    fn insert(&mut self, number: u16, made: (u64, u8, u16, UnixTime), met: bool, now: UnixTime) -> Result<(), Refusal> {
        let (sequence, variant, port, until) = made;
        self.lift(now, Some(number));
        if self.disputes.contains_key(&number) {
            return Err(Refusal::Disputed);
        }
        let content = (variant, port, until);
        let fresh = Known {
            sequence,
            content,
            until,
            met: met.then_some(now),
            failures: 0,
            last_failure: UnixTime(0),
            pinned: false,
            disputed: false,
        };
        let Some(known) = self.nodes.get_mut(&number) else {
            self.nodes.insert(number, fresh);
            return Ok(());
        };
        if known.disputed {
            return Err(Refusal::Disputed);
        }
        if known.sequence == sequence && known.content != content {
            (known.disputed, known.until) = (true, known.until.max(until));
            self.disputes.insert(number, known.until);
            return Err(Refusal::Disputed);
        }
        let here = known.content.1 == port;
        if sequence > known.sequence {
            if here || known.pinned {
                let moved = !here;
                (known.sequence, known.content, known.until) = (sequence, content, until);
                if met {
                    known.met = Some(now);
                }
                if met || moved {
                    (known.failures, known.last_failure) = (0, UnixTime(0));
                }
            } else {
                *known = fresh;
            }
            return Ok(());
        }
        if !(met && here) || known.until.0 + 60 < now.0 {
            return Err(Refusal::NotNewer);
        }
        (known.met, known.failures, known.last_failure) = (Some(now), 0, UnixTime(0));
        Ok(())
    }

    fn fail(&mut self, number: u16, now: UnixTime) -> bool {
        let Some(known) = self.nodes.get_mut(&number) else { return false };
        let pause = 60 << known.failures.saturating_sub(1).min(6);
        if known.failures > 0 && now.0 - known.last_failure.0 < pause {
            return false;
        }
        (known.failures, known.last_failure) = (known.failures.saturating_add(1), now);
        let most = if known.met.is_some() { FAILURES_MAX } else { FAILURES_MAX_UNMET };
        let dropped = known.failures >= most && !known.pinned && !known.disputed;
        if dropped {
            self.nodes.remove(&number);
        }
        dropped
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// With room for all, the phonebook is a map that follows simple rules.
    #[test]
    fn does_what_a_simple_map_does(steps in proptest::collection::vec(any_step(), 0..80)) {
        let mut room = Room::new(64, 64);
        room.evidence = std::vec![None; 8];
        let mut book = room.book();
        let mut reference = Reference::default();
        let mut now = NOW;
        for step in steps {
            match step {
                Step::Insert { number, sequence, variant, port, life, met } => {
                    let until = UnixTime(now.0 / 1000 * 1000 + life);
                    let source = if met { Source::Met } else { PEER };
                    let descriptor = made(number, sequence, variant, port, until);
                    if descriptor.is_expired_at(now) {
                        prop_assert_eq!(book.insert(shared(descriptor), source, now), Err(Refusal::Expired));
                        continue;
                    }
                    let expected = reference.insert(number, (sequence, variant, port, until), met, now);
                    prop_assert_eq!(book.insert(shared(descriptor), source, now).map(|_| ()), expected);
                }
                Step::Remove(number) => {
                    book.remove(&node(number));
                    reference.nodes.remove(&number);
                }
                Step::Fail(number) => {
                    prop_assert_eq!(book.record_failure(&node(number), true, now), reference.fail(number, now));
                }
                Step::Succeed(number) => {
                    book.record_success(&node(number), now);
                    if let Some(known) = reference.nodes.get_mut(&number) {
                        (known.failures, known.last_failure) = (0, UnixTime(0));
                        known.met = known.met.map(|_| now);
                    }
                }
                Step::Pin(number, pinned) => {
                    prop_assert_eq!(book.set_pinned(&node(number), pinned), reference.nodes.contains_key(&number));
                    if let Some(known) = reference.nodes.get_mut(&number) {
                        known.pinned = pinned;
                    }
                }
                Step::Wait(seconds) => now = UnixTime(now.0 + seconds),
                Step::Expire => {
                    book.remove_expired(now);
                    reference.lift(now, None);
                }
            }
            prop_assert_eq!(book.len(), reference.nodes.len());
            for (number, known) in &reference.nodes {
                let entry = book.get(&node(*number)).unwrap();
                prop_assert_eq!(entry.descriptor().sequence, known.sequence);
                prop_assert_eq!(entry.address().port(), known.content.1);
                prop_assert_eq!(entry.last_met(), known.met);
                prop_assert_eq!(entry.failures(), known.failures);
                prop_assert_eq!(entry.is_tried(), known.met.is_some());
                prop_assert_eq!((entry.is_pinned(), entry.is_disputed()), (known.pinned, known.disputed));
                prop_assert_eq!(entry.is_expired_at(now), known.until.0 + 60 < now.0);
            }
            prop_assert_eq!(book.evidence().count(), reference.disputes.len());
        }
    }

    /// With little room: no node twice, never our own, sequences never fall, pinned nodes stay, nobody is tried who was not met.
    #[test]
    fn invariants_hold(
        steps in proptest::collection::vec(any_step(), 0..80),
        tried in 0..3usize,
        new in 1..4usize,
    ) {
        let mut room = Room::new(tried, new);
        let mut book = room.book();
        book.own = Some(node(0));
        let mut now = NOW;
        let mut rng = super::super::testing::rng(1);
        for step in steps {
            // After a dispute all begins anew.
            let sequence = |e: &Entry<Card>| if e.is_disputed() { 0 } else { e.descriptor().sequence };
            let before: Vec<_> = book.iter().map(|e| (e.node(), sequence(e), e.is_pinned())).collect();
            let mut free = None;
            match step {
                Step::Insert { number, sequence, variant, port, life, met } => {
                    let descriptor = made(number, sequence, variant, port, UnixTime(now.0 + life));
                    let source = if met { Source::Met } else { PEER };
                    let result = book.insert(shared(descriptor), source, now);
                    prop_assert_eq!(result == Err(Refusal::Own), number == 0);
                    if let Ok(Inserted::Evicted(gone)) = result {
                        prop_assert!(book.get(&gone).is_none() && before.iter().any(|(id, ..)| *id == gone));
                    }
                }
                Step::Remove(number) => {
                    book.remove(&node(number));
                    free = Some(node(number));
                }
                Step::Fail(number) => {
                    let known = book.get(&node(number)).is_some();
                    let dropped = book.record_failure(&node(number), true, now);
                    prop_assert!(!dropped || known);
                    prop_assert_eq!(dropped, known && book.get(&node(number)).is_none());
                }
                Step::Succeed(number) => book.record_success(&node(number), now),
                Step::Pin(number, pinned) => {
                    book.set_pinned(&node(number), pinned);
                    free = Some(node(number));
                }
                Step::Wait(seconds) => {
                    now = UnixTime(now.0 + seconds);
                    if let Some(test) = book.next_test(now, &mut rng) {
                        prop_assert!(!book.get(&test.node).unwrap().is_disputed());
                    }
                }
                Step::Expire => {
                    let stays = |entry: &&Entry<Card>| entry.is_pinned() || entry.is_tried() && !entry.is_disputed();
                    let staying: Vec<_> = book.iter().filter(stays).map(Entry::node).collect();
                    book.remove_expired(now);
                    prop_assert!(staying.iter().all(|id| book.get(id).is_some()));
                    prop_assert!(book.iter().all(|entry| stays(&entry) || !entry.is_expired_at(now)));
                }
            }
            for (id, sequence, pinned) in before {
                match book.get(&id) {
                    Some(entry) => prop_assert!(entry.descriptor().sequence >= sequence || free == Some(id)),
                    None => prop_assert!(!pinned || free == Some(id)),
                }
            }
            prop_assert!(book.get(&node(0)).is_none());
            for entry in book.iter() {
                prop_assert_eq!(book.iter().filter(|other| other.node() == entry.node()).count(), 1);
                prop_assert!(!entry.is_tried() || entry.last_met().is_some());
            }
        }
    }
}
