use std::vec::Vec;

use super::super::testing::{Card, NOW, Room, assert_uniform, later, node, rng, with};
use super::super::{FAILURES_MAX, FAILURES_MAX_UNMET, Inserted, NetworkGroup, SWAPS_MAX, Source};
use super::*;

const PEER: Source = Source::Peer(NetworkGroup::V4([9, 9]));

/// Who is tested at `now`, and whether that is urgent.
fn tested(book: &mut Phonebook<'_, Card>, now: UnixTime) -> Option<(NodeId, bool)> {
    book.next_test(now, &mut rng(1)).map(|test| (test.node, test.urgent))
}

#[test]
fn pauses_grow_and_failures_within_them_are_one() {
    let mut room = Room::new(2, 2);
    let mut book = room.book();
    book.insert(with(1, |_| ()), Source::Met, NOW).unwrap();
    let mut now = NOW;
    for (count, pause) in [(1, 60), (2, 120), (3, 240), (4, 480)] {
        assert!(!book.record_failure(&node(1), true, now));
        for within in [0, pause / 2, pause - 1] {
            assert!(!book.record_failure(&node(1), true, UnixTime(now.0 + within)), "same outage");
            assert_eq!(tested(&mut book, UnixTime(now.0 + within)), None, "the pause is not over");
        }
        assert_eq!(book.get(&node(1)).unwrap().failures(), count);
        assert_eq!(book.get(&node(1)).unwrap().last_try(), Some(now));
        now = UnixTime(now.0 + pause);
    }
    let mut forgiven = book.shelves.tried.to_vec();
    assert!(book.record_failure(&node(1), true, now));
    assert!(book.is_empty());
    assert!(!book.record_failure(&node(1), true, now), "unknown by now");

    book.shelves.tried.swap_with_slice(&mut forgiven);
    assert_eq!(book.get(&node(1)).unwrap().failures(), FAILURES_MAX - 1);
    book.record_success(&node(1), now);
    assert_eq!(book.get(&node(1)).unwrap().last_met(), Some(now));
    assert!(!book.record_failure(&node(1), true, now));
    assert_eq!(book.get(&node(1)).unwrap().failures(), 1);
    assert!(!book.record_failure(&node(1), true, UnixTime(5)), "a clock set back does not stop the count");
    assert_eq!(book.get(&node(1)).unwrap().failures(), 2);
    book.insert(with(1, |d| d.sequence = 2), PEER, NOW).unwrap();
    assert_eq!(book.get(&node(1)).unwrap().failures(), 2, "still at the address that failed");
    let further = |d: &mut crate::wire::Descriptor| {
        d.sequence = 3;
        d.addresses.push("192.0.2.1:1".parse().unwrap()).unwrap();
    };
    book.insert(with(1, further), PEER, NOW).unwrap();
    assert_eq!(book.get(&node(1)).unwrap().failures(), 2, "nobody links to a second address");
    let moved = |d: &mut crate::wire::Descriptor| {
        d.sequence = 4;
        d.addresses[0] = "192.0.2.1:1".parse().unwrap();
    };
    book.insert(with(1, moved), PEER, NOW).unwrap();
    assert_eq!(book.get(&node(1)).unwrap().failures(), 0);
}

#[test]
fn who_was_never_met_has_two_tries() {
    let mut room = Room::new(2, 2);
    let mut book = room.book();
    book.insert(with(1, |_| ()), PEER, NOW).unwrap();
    for attempt in 1..=FAILURES_MAX_UNMET {
        let now = later(60 * u64::from(attempt));
        assert_eq!(tested(&mut book, now), Some((node(1), true)));
        assert_eq!(tested(&mut book, now), None, "not twice at a time");
        assert_eq!(book.record_failure(&node(1), true, now), attempt == FAILURES_MAX_UNMET);
    }
    assert!(book.is_empty());
}

#[test]
fn a_test_of_which_nothing_is_heard_is_forgotten() {
    let mut room = Room::new(2, 2);
    let mut book = room.book();
    book.insert(with(1, |_| ()), PEER, NOW).unwrap();
    assert_eq!(tested(&mut book, NOW), Some((node(1), true)));
    assert_eq!(tested(&mut book, later(59)), None);
    assert_eq!(tested(&mut book, later(60)), Some((node(1), true)));
}

#[test]
fn who_was_met_longest_ago_is_tested_after_an_hour_if_nobody_else_is() {
    let mut room = Room::new(2, 32);
    let mut book = room.book();
    book.insert(with(1, |_| ()), Source::Met, NOW).unwrap();
    book.insert(with(2, |_| ()), Source::Met, later(1)).unwrap();
    assert_eq!(tested(&mut book, later(3599)), None);
    assert!(!book.wants_tests(later(3599)));
    assert_eq!(tested(&mut book, later(3601)), Some((node(1), false)));
    book.insert(with(1, |_| ()), Source::Met, later(3601)).unwrap();
    assert_eq!(tested(&mut book, later(3602)), Some((node(2), false)));
    assert_eq!(tested(&mut book, UnixTime(5)).unwrap().0, node(2), "a clock set back does not stop tests");
}

/// At `later(3671)`: 6 waits for the place of 1, 4 and then 5 have failed, 3 was told of, and the other places are in good order.
fn somebody_of_each_kind() -> Room {
    let mut room = Room::new(2, 64);
    let mut book = room.book();
    book.insert(with(1, |_| ()), Source::Met, NOW).unwrap();
    book.insert(with(2, |_| ()), Source::Met, later(3602)).unwrap();
    for (number, failed) in [(4, 3610), (5, 3611)] {
        book.insert(with(number, |_| ()), PEER, NOW).unwrap();
        book.record_failure(&node(number), true, later(failed));
    }
    book.insert(with(3, |_| ()), PEER, later(3610)).unwrap();
    book.insert(with(6, |_| ()), Source::Met, later(3612)).unwrap();
    room
}

#[test]
fn a_draw_decides_between_those_asked_overdue_and_heard_of() {
    let room = somebody_of_each_kind();
    let mut rng = rng(3);
    let mut counts = [0; 3];
    for _ in 0..3000 {
        let test = room.clone().book().next_test(later(3671), &mut rng).unwrap();
        assert!(test.urgent);
        counts[[1, 4, 3].iter().position(|&number| node(number) == test.node).unwrap()] += 1;
    }
    assert_uniform(&counts, 13.82);
}

#[test]
fn everybody_has_his_turn() {
    for seed in 0..20 {
        let mut room = somebody_of_each_kind();
        let mut book = room.book();
        let mut rng = rng(seed);
        let mut next = || book.next_test(later(3671), &mut rng).map(|test| (test.node, test.urgent));
        let turns: Vec<_> = (0..4).map(|_| next().unwrap()).collect();
        assert_eq!(next(), None);
        assert!(turns.iter().all(|(_, urgent)| *urgent));
        let at = |number: u16| turns.iter().position(|(id, _)| *id == node(number)).unwrap();
        assert!([1, 3].iter().all(|&number| at(number) < 4) && at(4) < at(5), "who failed first is tried first");
    }
}

#[test]
fn forced_swaps_leave_the_others_their_share_and_come_to_an_end() {
    const TRIED: u16 = 64;
    let mut room = Room::new(TRIED.into(), 256);
    let mut book = room.book();
    let mut filled = 0;
    let full = |book: &Phonebook<'_, Card>| book.counts().tried == usize::from(TRIED);
    let mut number = 0;
    while !full(&book) {
        // Whoever finds no place any more in a bucket is left out.
        if book.insert(with(number, |_| ()), Source::Met, NOW) == Ok(Inserted::Added) {
            match book.get(&node(number)).unwrap().is_tried() {
                true => filled += 1,
                false => book.remove(&node(number)),
            }
        }
        number += 1;
    }
    assert_eq!(filled, TRIED);
    let honest: Vec<u16> = (2000..2020).collect();
    for &number in &honest {
        book.insert(with(number, |_| ()), PEER, later(7200)).unwrap();
    }
    let mut rng = rng(5);
    let (mut asked, mut others, mut others_done) = (0, 0, None);
    for tick in 0..300u64 {
        let now = later(7200 + 2 * tick);
        // Strangers have themselves met as often as they like, and find all buckets full.
        for stranger in 0..10 {
            let number = 3000 + (tick % 20) as u16 * 10 + stranger;
            let _known_or_full = book.insert(with(number, |_| ()), Source::Met, now);
        }
        let Some(test) = book.next_test(now, &mut rng).filter(|test| test.urgent) else { continue };
        let is_honest = honest.iter().any(|&number| node(number) == test.node);
        asked += u32::from(!is_honest);
        others += u32::from(is_honest);
        if others == 20 && others_done.is_none() {
            others_done = Some(asked);
        }
        // All answer.
        let descriptor = book.get(&test.node).unwrap().card().clone();
        assert!(book.insert(descriptor, Source::Met, now).is_ok());
    }
    // As many of them before the twentieth success as fall to one of two equal shares: 20 expected, standard deviation 6.3.
    assert!(others_done.unwrap() <= 40, "{others_done:?}");
    assert_eq!(asked, u32::from(TRIED), "each is asked once within the hour");
}

#[test]
fn those_heard_of_are_tested_in_random_order() {
    let mut room = Room::new(2, 10);
    let mut book = room.book();
    for number in 0..10 {
        book.insert(with(number, |_| ()), PEER, NOW).unwrap();
    }
    let mut rng = rng(3);
    let mut counts = [0; 10];
    for round in 0..4000 {
        let test = book.next_test(later(60 * round), &mut rng).unwrap();
        counts[(0..10).position(|number| node(number) == test.node).unwrap()] += 1;
    }
    assert_uniform(&counts, 27.88);
}

#[test]
fn one_that_answers_keeps_its_place() {
    let mut room = Room::new(1, 4);
    let mut book = room.book();
    book.insert(with(1, |_| ()), Source::Met, NOW).unwrap();
    for (number, success) in [(2, false), (3, true)] {
        let now = later(3600 * u64::from(number));
        assert_eq!(book.insert(with(number, |_| ()), Source::Met, now), Ok(Inserted::Added));
        assert!(!book.get(&node(number)).unwrap().is_tried());
        assert_eq!(tested(&mut book, now), Some((node(1), true)));
        if success {
            book.record_success(&node(1), now);
        } else {
            assert_eq!(book.insert(with(1, |_| ()), Source::Met, now), Ok(Inserted::Met));
        }
        assert!(book.get(&node(1)).unwrap().is_tried() && book.get(&node(number)).is_some());
        assert_eq!(tested(&mut book, now), None, "nobody waits any more");
        book.remove(&node(number));
    }
}

#[test]
fn one_that_does_not_answer_changes_places() {
    let mut room = Room::new(2, 4);
    let mut book = room.book();
    book.insert(with(1, |_| ()), Source::Met, later(1)).unwrap();
    book.insert(with(2, |_| ()), Source::Met, NOW).unwrap();
    book.insert(with(3, |_| ()), Source::Met, later(3610)).unwrap();
    book.insert(with(4, |_| ()), Source::Met, later(3611)).unwrap();
    assert!(!book.record_failure(&node(2), false, later(3612)), "a circuit that failed is no test");
    assert!(book.get(&node(2)).unwrap().is_tried());
    assert_eq!(tested(&mut book, later(3613)), Some((node(2), true)), "met longest ago");
    assert!(!book.record_failure(&node(2), true, later(3614)));
    let tried: Vec<_> = (1..5).map(|number| book.get(&node(number)).unwrap().is_tried()).collect();
    assert_eq!(tried, [true, false, true, false]);
    assert_eq!(book.get(&node(2)).unwrap().failures(), 2);
    // It answers later, and waits then.
    book.insert(with(2, |_| ()), Source::Met, later(3900)).unwrap();
    assert_eq!(tested(&mut book, later(3900)), Some((node(1), true)));
    // Whoever waits and fails meanwhile waits no longer, not even if it is forgiven.
    book.record_failure(&node(2), true, later(3901));
    book.record_success(&node(2), later(3901));
    assert!(!book.record_failure(&node(1), true, later(3902)));
    assert!(book.get(&node(1)).unwrap().is_tried() && !book.get(&node(2)).unwrap().is_tried());
}

#[test]
fn circuits_decide_no_swap_and_end_no_test() {
    let waiting = |room: &mut Room| {
        let mut book = room.book();
        book.insert(with(1, |_| ()), Source::Met, NOW).unwrap();
        book.insert(with(2, |_| ()), Source::Met, later(3600)).unwrap();
        assert_eq!(tested(&mut book, later(3601)), Some((node(1), true)));
    };
    // While the test is under way a circuit fails, and another one; and then the test fails, too, or does not.
    for fails in [true, false] {
        let mut room = Room::new(1, 4);
        waiting(&mut room);
        let mut book = room.book();
        for second in [3602, 3603] {
            assert!(!book.record_failure(&node(1), false, later(second)));
            assert_eq!(book.get(&node(1)).unwrap().failures(), 1, "one outage");
            assert!(book.get(&node(1)).unwrap().is_tried());
            assert_eq!(tested(&mut book, later(second)), None, "the test goes on");
        }
        if fails {
            book.record_failure(&node(1), true, later(3604));
        } else {
            book.insert(with(1, |_| ()), Source::Met, later(3604)).unwrap();
        }
        assert_eq!(book.get(&node(1)).unwrap().is_tried(), !fails);
        assert_eq!(book.get(&node(1)).unwrap().failures(), if fails { 2 } else { 0 });
    }
    // A test of which nothing was heard is over, and what fails later is none of it.
    for tested in [true, false] {
        let mut room = Room::new(1, 4);
        waiting(&mut room);
        let mut book = room.book();
        book.record_failure(&node(1), tested, later(3661));
        assert!(book.get(&node(1)).unwrap().is_tried());
    }
}

#[test]
fn who_may_be_cut_off_has_nobody_of_tried_leave() {
    let mut room = Room::new(1, 4);
    let mut book = room.book();
    book.insert(with(1, |_| ()), Source::Met, NOW).unwrap();
    book.insert(with(2, |_| ()), Source::Met, later(3600)).unwrap();
    book.insert(with(3, |_| ()), PEER, later(3600)).unwrap();
    for round in 1..=20u8 {
        let now = later(3600 + 4000 * u64::from(round));
        for number in [1, 3] {
            let Some(slot) = book.find(&node(number)) else { continue };
            book.entry_mut(slot).unwrap().begin_test(now);
            let dropped = book.count_failure(&node(number), true, true, now);
            assert_eq!(dropped, number == 3 && round == FAILURES_MAX_UNMET);
        }
        let entry = book.get(&node(1)).unwrap();
        assert!(entry.is_tried() && entry.failures() == round.min(FAILURES_MAX - 1));
        assert_eq!(entry.last_try(), Some(now), "the pause runs anew");
    }
    assert_eq!(book.swaps().count(), 1, "who waits goes on waiting");
    let now = later(200_000);
    let slot = book.find(&node(1)).unwrap();
    book.entry_mut(slot).unwrap().begin_test(now);
    book.count_failure(&node(1), true, false, now);
    assert!(book.get(&node(2)).unwrap().is_tried());
}

#[test]
fn one_that_does_not_answer_is_dropped_if_there_is_no_other_place() {
    let mut room = Room::new(1, 1);
    let mut book = room.book();
    book.insert(with(1, |_| ()), Source::Met, NOW).unwrap();
    book.insert(with(2, |_| ()), Source::Met, later(3600)).unwrap();
    for number in 10..14 {
        assert!(book.insert(with(number, |d| d.valid_from = NOW), PEER, later(3600)).is_err(), "who waits stays");
    }
    assert_eq!(tested(&mut book, later(3601)), Some((node(1), true)));
    assert!(!book.record_failure(&node(1), true, later(3601)), "the place in `new` has come free");
    assert!(book.get(&node(2)).unwrap().is_tried() && !book.get(&node(1)).unwrap().is_tried());

    let mut room = Room::new(1, 2);
    let mut book = room.book();
    book.insert(with(1, |_| ()), Source::Met, NOW).unwrap();
    book.insert(with(2, |_| ()), Source::Met, later(3600)).unwrap();
    book.insert(with(3, |_| ()), Source::Met, later(3600)).unwrap();
    book.set_pinned(&node(2), true);
    book.set_pinned(&node(3), true);
    assert_eq!(tested(&mut book, later(3601)), Some((node(1), true)));
    book.remove(&node(2));
    assert!(!book.record_failure(&node(1), true, later(3601)), "who waited is gone");
    assert!(book.get(&node(1)).unwrap().is_tried());
}

#[test]
fn a_disputed_one_goes_without_a_test() {
    let mut room = Room::new(1, 2);
    let mut book = room.book();
    book.insert(with(2, |_| ()), Source::Met, NOW).unwrap();
    assert!(book.insert(with(2, |d| d.link_key = [0; 32]), PEER, NOW).is_err());
    assert!(book.get(&node(2)).unwrap().is_disputed());
    assert_eq!(book.insert(with(3, |_| ()), Source::Met, NOW), Ok(Inserted::Evicted(node(2))));
    assert_eq!(book.len(), 1);
    assert_eq!(book.insert(with(2, |_| ()), Source::Met, NOW), Err(super::super::Refusal::Disputed));
}

#[test]
fn who_was_met_leaves_by_failures_and_not_by_expiry() {
    let mut room = Room::new(64, 64);
    let mut book = room.book();
    book.insert(with(1, |d| d.valid_until = NOW), Source::Met, later(1)).unwrap();
    book.insert(with(2, |d| d.valid_until = NOW), Source::Met, NOW).unwrap();
    book.insert(with(3, |d| d.valid_until = NOW), PEER, NOW).unwrap();
    book.insert(with(4, |_| ()), Source::Met, NOW).unwrap();
    assert_eq!(tested(&mut book, later(60)).unwrap().0, node(3), "within the grace they are as others");
    // Whatever the clock says: in doubt, nobody counts as expired.
    book.set_clock_in_doubt(true);
    book.record_failure(&node(3), true, later(60));
    assert!(!book.wants_tests(later(61)));
    assert_eq!(tested(&mut book, later(61)), None);
    book.set_clock_in_doubt(false);
    assert!(book.wants_tests(later(61)));
    book.remove_expired(later(61));
    assert_eq!(book.counts().tried, 3);
    assert!(book.get(&node(3)).is_none());
    assert_eq!(book.sample(9, later(61), &mut rng(1), |_| false).count(), 1, "nor is it passed on");
    assert_eq!(tested(&mut book, later(61)), Some((node(2), true)), "met longest ago");
    assert_eq!(tested(&mut book, later(61)), Some((node(1), true)));
    assert_eq!(tested(&mut book, later(62)), None, "not twice at a time");
    // 2 answers, and is in order again; 1 does not, again and again.
    let again = with(2, |d| d.sequence = 2);
    assert_eq!(book.insert(again, Source::Met, later(62)), Ok(Inserted::Updated));
    assert!(book.get(&node(2)).unwrap().is_tried());
    let mut now = later(62);
    for pause in [60, 120, 240, 480] {
        assert!(!book.record_failure(&node(1), true, now));
        book.remove_expired(now);
        assert_eq!(tested(&mut book, UnixTime(now.0 + pause - 1)), None, "the pause is not over");
        now.0 += pause;
        assert_eq!(tested(&mut book, now), Some((node(1), true)));
    }
    assert!(book.record_failure(&node(1), true, now));
    assert_eq!(book.counts().tried, 2);
}

#[test]
fn in_a_full_bucket_an_expired_one_is_asked_first_and_stays_if_it_answers() {
    for answers in [false, true] {
        let mut room = Room::new(3, 8);
        let mut book = room.book();
        let now = later(3600);
        book.insert(with(1, |_| ()), Source::Met, NOW).unwrap();
        book.insert(with(2, |d| d.valid_until = later(3000)), Source::Met, later(2000)).unwrap();
        book.insert(with(3, |d| d.valid_until = later(3000)), Source::Met, later(2001)).unwrap();
        assert_eq!(book.insert(with(4, |_| ()), Source::Met, now), Ok(Inserted::Added), "nobody goes untested");
        let swaps: Vec<_> =
            book.swaps().map(|pair| <[_; 2]>::from(pair).map(|slot| book.entry(slot).unwrap().node())).collect();
        assert_eq!(swaps, [[node(2), node(4)]]);
        book.remove_expired(now);
        assert_eq!(book.len(), 4);
        // Expired ones are tested anyway, this one for two reasons.
        while book.get(&node(2)).unwrap().last_try().is_none() {
            assert!([node(2), node(3)].contains(&tested(&mut book, now).unwrap().0));
        }
        if answers {
            assert_eq!(book.insert(with(2, |d| d.sequence = 2), Source::Met, now), Ok(Inserted::Updated));
        } else {
            book.record_failure(&node(2), true, now);
        }
        assert_eq!(
            [1, 2, 3, 4].map(|number| book.get(&node(number)).unwrap().is_tried()),
            [true, answers, true, !answers]
        );
    }
}

#[test]
fn a_test_goes_on_when_a_newer_descriptor_says_the_same_address() {
    let mut room = Room::new(1, 8);
    let mut book = room.book();
    book.insert(with(1, |_| ()), Source::Met, NOW).unwrap();
    book.insert(with(2, |_| ()), Source::Met, later(3600)).unwrap();
    book.record_failure(&node(1), true, later(3601));
    assert_eq!(tested(&mut book, later(3602)), Some((node(1), true)));
    for (sequence, source) in [(2, PEER), (3, Source::Announced)] {
        let newer = with(1, |d| {
            d.sequence = sequence;
            d.addresses.push("192.0.2.1:1".parse().unwrap()).unwrap();
        });
        assert_eq!(book.insert(newer, source, later(3603)), Ok(Inserted::Updated));
        assert_eq!(tested(&mut book, later(3603)), None, "it is being tested");
    }
    // And what comes of it counts, in the pause after the last failure, and for whoever waits.
    book.record_failure(&node(1), true, later(3604));
    assert_eq!(book.get(&node(1)).unwrap().failures(), 2);
    assert!(book.get(&node(2)).unwrap().is_tried() && !book.get(&node(1)).unwrap().is_tried());
}

#[test]
fn at_most_eight_wait() {
    let mut room = Room::new(20 * super::super::BUCKET, 2000);
    let mut book = room.book();
    let now = later(20_000);
    for number in 0..2000 {
        let _full = book.insert(with(number, |_| ()), Source::Met, later(10 * u64::from(number)));
    }
    assert!(book.counts().tried > 600);
    assert_eq!(book.swaps().count(), SWAPS_MAX);
    // Each waits for another one, and all can be settled.
    let mut asked: Vec<_> = book.swaps().map(|(asked, _)| asked.0 / 32).collect();
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(asked.len(), SWAPS_MAX);
    let mut settled = 0;
    let mut rng = rng(1);
    while book.swaps().next().is_some() {
        let test = book.next_test(now, &mut rng).unwrap();
        assert!(test.urgent);
        if book.get(&test.node).unwrap().is_tried() {
            book.record_failure(&test.node, true, now);
            assert!(book.get(&test.node).is_none_or(|entry| !entry.is_tried()));
            settled += 1;
        }
    }
    assert_eq!(settled, SWAPS_MAX);
}
