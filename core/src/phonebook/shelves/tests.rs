use std::collections::BTreeSet;
use std::format;
use std::vec::Vec;

use super::super::testing::{Card, NOW, Room, descriptor, in_group, later, node, numbered, rng, shared, with};
use super::super::{Inserted, Refusal};
use super::*;

const PEER: Source = Source::Peer(NetworkGroup::V4([9, 9]));

#[test]
fn buckets_cover_a_shelf_and_do_not_overlap() {
    for places in [0, 1, 31, 32, 63, 64, 65, 127, 128, 2048, 4096] {
        let buckets: BTreeSet<_> = (0..1000)
            .map(|number| {
                let range = bucket_range(places, number);
                (range.start, range.end)
            })
            .collect();
        let buckets: Vec<_> = buckets.into_iter().collect();
        assert_eq!(buckets.len(), (places / BUCKET).max(1));
        assert_eq!((buckets[0].0, buckets[buckets.len() - 1].1), (0, places));
        assert!(buckets.windows(2).all(|pair| pair[0].1 == pair[1].0 && pair[0].1 - pair[0].0 == BUCKET));
    }
}

#[test]
fn a_group_reaches_four_buckets_and_a_source_eight() {
    let key = BookKey::generate(&mut rng(1));
    let group = NetworkGroup::V4([1, 2]);
    let of_group: BTreeSet<_> = (0..500).map(|number| key.tried_bucket(group, &node(number))).collect();
    assert_eq!(of_group.len() as u64, BUCKETS_PER_GROUP);
    for source in [Source::Peer(group), Source::Announced, Source::Stored] {
        let groups = (0..=255).map(|number| NetworkGroup::V4([number, 0]));
        let of_source: BTreeSet<_> = groups.map(|group| key.new_bucket(group, source)).collect();
        assert_eq!(of_source.len() as u64, BUCKETS_PER_SOURCE);
    }
    let itself: BTreeSet<_> =
        (0..=255).map(|number| key.new_bucket(NetworkGroup::V4([number, 0]), Source::Met)).collect();
    assert_eq!(itself.len(), 256, "each group is a source of its own");
}

#[test]
fn buckets_are_as_specified() {
    // Python: h = lambda x: int.from_bytes(hashlib.sha256(b"bulbil/1 bucket" + bytes([7]) * 32 + x).digest()[:8], "big")
    let key = BookKey::new([7; 32]);
    let (group, node) = (NetworkGroup::V4([1, 2]), NodeId([3; 32]));
    assert_eq!(key.tried_bucket(group, &node), 15_017_749_660_240_475_958);
    assert_eq!(key.new_bucket(group, Source::Peer(NetworkGroup::V6([1, 2, 3, 4]))), 6_639_419_637_246_497_942);
    assert_eq!(key.new_bucket(group, Source::Announced), 10_567_240_202_792_675_151);
}

#[test]
fn places_that_cannot_be_counted_are_not_used() {
    let mut room = Room::new(40_000, 40_000);
    let book = Phonebook::new(room.shelves(), None, BookKey::new([0; 32]), Grouping::Network);
    assert_eq!(book.capacity(), 65_534);
}

#[test]
fn the_lot_is_as_specified() {
    // Python: h(bytes([5]) + bytes([3]) * 32), h as above
    assert_eq!(BookKey::new([7; 32]).lot(&NodeId([3; 32])), 117_599_261_210_552_528);
}

#[test]
fn sites_are_addresses_and_slash_64() {
    let same = |one: &str, other: &str| same_site(one.parse().unwrap(), other.parse().unwrap());
    assert!(same("192.0.2.1", "192.0.2.1") && same("::ffff:192.0.2.1", "192.0.2.1"));
    assert!(!same("192.0.2.1", "192.0.2.2") && !same("2001:db8::1", "192.0.2.1"));
    assert!(same("2001:db8::1", "2001:db8::ffff:0:0:1"));
    assert!(!same("2001:db8::1", "2001:db8:0:1::1"));
}

/// Node `number` at `address`.
fn at(number: u16, address: &str) -> Card {
    with(number, |d| d.addresses[0] = address.parse().unwrap())
}

#[test]
fn of_one_ip_address_two_are_tried() {
    for [first, second, third, elsewhere] in [
        ["192.0.2.1:1", "192.0.2.1:2", "192.0.2.1:3", "192.0.2.2:1"],
        ["[2001:db8::1]:1", "[2001:db8::2]:1", "[2001:db8::3]:1", "[2001:db8:0:1::1]:1"],
    ] {
        let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
        let mut book = room.book();
        let tried = |book: &Phonebook<'_, Card>, number| book.get(&node(number)).unwrap().is_tried();
        for (number, address) in [(1, first), (2, second), (3, third), (4, elsewhere)] {
            assert_eq!(book.insert(at(number, address), Source::Met, NOW), Ok(Inserted::Added));
            assert_eq!(book.insert(at(number, address), Source::Met, NOW), Ok(Inserted::Met));
        }
        assert_eq!([1, 2, 3, 4].map(|number| tried(&book, number)), [true, true, false, true]);
        // As long as both answer, and even while one fails: it may come back.
        let mut now = later(3600);
        for pause in [60, 120, 240, 480] {
            book.record_failure(&node(1), true, now);
            assert_eq!(book.insert(at(3, third), Source::Met, now), Ok(Inserted::Met));
            assert!(!tried(&book, 3));
            now.0 += pause;
        }
        assert!(book.record_failure(&node(1), true, now));
        assert_eq!(book.insert(at(3, third), Source::Met, now), Ok(Inserted::Met));
        assert!(tried(&book, 3));
        // Whoever is there may change its port, and whoever the owner wants there may come.
        let moved = first.replace("]:1", "]:9").replace(".1:1", ".1:9");
        let moved = with(2, |d| (d.sequence, d.addresses[0]) = (2, moved.parse().unwrap()));
        assert_eq!(book.insert(moved, Source::Met, now), Ok(Inserted::Updated));
        assert!(tried(&book, 2));
        book.insert(at(5, first), PEER, now).unwrap();
        book.set_pinned(&node(5), true);
        assert_eq!(book.insert(at(5, first), Source::Met, now), Ok(Inserted::Met));
        assert!(tried(&book, 5));
    }
    // On one machine all have one address.
    let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
    let mut book = Phonebook { grouping: Grouping::Address, ..room.book() };
    for number in 1..100 {
        book.insert(at(number, &format!("127.0.0.1:{number}")), Source::Met, NOW).unwrap();
    }
    assert_eq!(book.counts().tried, 99);
}

#[test]
fn who_waits_is_counted_when_its_turn_comes() {
    let mut room = Room::new(3, 32);
    let mut book = room.book();
    for number in [1, 2, 3] {
        book.insert(with(number, |_| ()), Source::Met, later(number.into())).unwrap();
    }
    book.insert(at(4, "192.0.2.1:1"), Source::Met, later(4000)).unwrap();
    for number in [2, 3] {
        book.remove(&node(number));
    }
    for (number, address) in [(5, "192.0.2.1:2"), (6, "192.0.2.1:3")] {
        book.insert(at(number, address), Source::Met, later(4001)).unwrap();
    }
    let mut rng = rng(1);
    assert_eq!(book.next_test(later(4002), &mut rng).unwrap().node, node(1));
    assert!(!book.record_failure(&node(1), true, later(4003)));
    assert_eq!([1, 4, 5, 6].map(|number| book.get(&node(number)).unwrap().is_tried()), [true, false, true, true]);
    assert_eq!(book.swaps().count(), 0);
}

/// Who is asked, and for whom.
fn swaps(book: &Phonebook<'_, Card>) -> Vec<[NodeId; 2]> {
    book.swaps().map(|(asked, waiting)| [asked, waiting].map(|slot| book.entry(slot).unwrap().node())).collect()
}

#[test]
fn a_flag_whose_counterpart_has_left_finds_no_other() {
    // 1 is asked for the sake of 3, and leaves; 4 comes in its place, and 2 is asked for the sake of 5.
    let mut room = Room::new(2, 32);
    let mut book = room.book();
    book.insert(with(1, |_| ()), Source::Met, NOW).unwrap();
    book.insert(with(2, |_| ()), Source::Met, later(1)).unwrap();
    book.insert(with(3, |_| ()), Source::Met, later(4000)).unwrap();
    assert_eq!(swaps(&book), [[node(1), node(3)]]);
    book.remove(&node(1));
    book.insert(with(4, |_| ()), Source::Met, later(4000)).unwrap();
    book.insert(with(5, |_| ()), Source::Met, later(4000)).unwrap();
    assert_eq!(swaps(&book), [[node(2), node(5)]]);

    // 1 is asked for the sake of 3, which leaves; 2 has expired when 4 comes, and is asked in its place.
    let mut room = Room::new(2, 32);
    let mut book = room.book();
    book.insert(with(1, |_| ()), Source::Met, NOW).unwrap();
    book.insert(with(2, |d| d.valid_until = later(5000)), Source::Met, later(1)).unwrap();
    book.insert(with(3, |_| ()), Source::Met, later(4000)).unwrap();
    book.remove(&node(3));
    assert_eq!(book.swaps().count(), 0);
    book.insert(with(4, |_| ()), Source::Met, later(6000)).unwrap();
    assert_eq!(swaps(&book), [[node(2), node(4)]]);
}

#[test]
fn a_group_holds_an_eighth_of_a_bucket_of_new() {
    let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
    let mut book = room.book();
    let mut numbers: Vec<u16> = (0..200).collect();
    let crowd = |number: u16| shared(in_group(descriptor(number), 1));
    for &number in &numbers {
        let _full = book.insert(crowd(number), Source::Announced, NOW);
    }
    numbers.sort_unstable_by_key(|&number| book.key.lot(&node(number)));
    let kept = |book: &Phonebook<'_, Card>| -> BTreeSet<NodeId> { book.iter().map(Entry::node).collect() };
    assert_eq!(kept(&book), numbers[..4].iter().map(|&number| node(number)).collect(), "those with the smallest lots");
    // Another one of the group has no use for the places that are free; unless one of theirs is worse off. Here it has failed,
    // and here it was met and found no place.
    assert_eq!(book.insert(crowd(numbers[9]), Source::Announced, NOW), Err(Refusal::Full));
    book.record_failure(&node(numbers[0]), true, NOW);
    let evicted = Inserted::Evicted(node(numbers[0]));
    assert_eq!(book.insert(crowd(numbers[9]), Source::Announced, NOW), Ok(evicted));
    for number in [300, 301] {
        let mut at_its_address = crowd(numbers[1]).descriptor().clone();
        at_its_address.identity = descriptor(number).identity;
        at_its_address.addresses[0].set_port(number);
        book.insert(shared(at_its_address), Source::Met, NOW).unwrap();
    }
    assert_eq!(book.insert(crowd(numbers[1]), Source::Met, NOW), Ok(Inserted::Met));
    assert!(!book.get(&node(numbers[1])).unwrap().is_tried());
    let evicted = Inserted::Evicted(node(numbers[1]));
    assert_eq!(book.insert(crowd(numbers[10]), Source::Announced, NOW), Ok(evicted));
    // A pinned one counts for nobody, and what others tell lies elsewhere.
    book.set_pinned(&node(numbers[2]), true);
    assert_eq!(book.insert(crowd(numbers[50]), Source::Announced, NOW), Ok(Inserted::Added));
    assert_eq!(book.insert(crowd(numbers[51]), PEER, NOW), Ok(Inserted::Added));
}

/// Strangers announce `per_test` inventions from `groups` network groups for each test that is made, with whatever times they like; nobody is
/// there. Meanwhile newcomers announce themselves once each. Says how many of how many newcomers are tested.
fn flood(per_test: u32, groups: u32) -> (u32, u32) {
    const NEWCOMERS: u16 = 200;
    const PAUSE: u64 = 7;
    // By then the places are taken by those with the smallest lots.
    const WARM: u64 = 400;
    // And by the end all have been tested who are still there.
    const COOL: u64 = 400;
    let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
    let mut book = room.book();
    let mut rng = rng(8);
    let newcomer = |number: u16| in_group(descriptor(number), number as u8);
    let (mut inventions, mut tested) = (0u32, 0);
    let last = WARM + PAUSE * u64::from(NEWCOMERS);
    for tick in 0..last + COOL {
        let now = later(2 * tick);
        for _ in 0..per_test {
            inventions += 1;
            let mut invention = numbered(inventions.wrapping_mul(0x9e37_79b1) | 1 << 31);
            let [.., high, low] = (inventions.wrapping_mul(0x85eb_ca6b) % groups).to_be_bytes();
            invention.addresses[0].set_ip([100 + high, low, 1, 1].into());
            (invention.valid_from, invention.valid_until) = (now, later(1 << 30));
            let _lost = book.insert(shared(invention), Source::Announced, now);
        }
        if let Some(number) = tick.checked_sub(WARM).filter(|since| since % PAUSE == 0 && tick < last) {
            let _lost = book.insert(shared(newcomer((number / PAUSE) as u16)), Source::Announced, now);
        }
        let Some(test) = book.next_test(now, &mut rng) else { continue };
        let found = (0..NEWCOMERS).find(|&number| node(number) == test.node);
        match found {
            Some(number) => {
                tested += 1;
                assert_eq!(book.insert(shared(newcomer(number)), Source::Met, now), Ok(Inserted::Met));
            }
            None => drop(book.record_failure(&test.node, true, now)),
        }
    }
    (tested, NEWCOMERS.into())
}

#[test]
fn announcements_from_few_groups_keep_no_newcomer_out() {
    // Seven groups: even if all share one bucket, a place for four others is left there.
    let (tested, of) = flood(10, 7);
    assert_eq!(tested, of);
}

#[test]
fn announcements_from_many_groups_leave_newcomers_their_share_of_the_tests() {
    // Nobody can tell newcomers from inventions but by testing them, and one in 10 can be tested: so many newcomers are, too. They announce
    // themselves with every exchange, each time to another node, whose key decides anew.
    let (tested, of) = flood(10, 10_000);
    assert!(tested * 20 >= of, "{tested} of {of}");
    // And nothing that an announcement claims makes it one of more weight.
    assert!(tested * 4 <= of, "{tested} of {of}");
}
