//! Whether a node is cut off: who of those it knows answers.

use super::*;

/// Sees that nobody is given up as long as only `allies` answer, who were met before; then all of `alive` do, and the others leave.
fn is_cut_off_by(allies: &[u16], alive: impl Fn(u16) -> bool) {
    let mut room = Room::new(64, 64);
    let mut steward = steward(&mut room);
    acquainted(&mut steward);
    let guards = steward.guards().clone();
    let told = with(100, |d| d.valid_until = later(HOURS));
    steward.handle_told(told, Teller::Announced, at(0)).unwrap();
    test_begins(&mut steward, 100, at(0));
    for second in (302..6 * HOURS).step_by(2) {
        turn_with(&mut steward, |number| allies.contains(&number), at(second));
        let met = steward.book().iter().filter(|entry| entry.is_tried());
        assert_eq!((met.count(), steward.is_cut_off(at(second))), (NODES.len(), true), "{second}");
        // Every request finds its first hops failing.
        let avoid = steward.guards().nodes();
        let request = PathRequest { avoid: &avoid, ..PathRequest::new(LastHop::Exit { port: None }, at(second).date) };
        let _none = steward.choose_path(&request, None, &mut rng(second));
        assert_eq!(*steward.guards(), guards, "{second}");
    }
    let failures = |steward: &Steward<'_, Card>, number| steward.book().get(&node(number)).map(Entry::failures);
    for number in NODES {
        let expected = if allies.contains(&number) { 0 } else { FAILURES_MAX - 1 };
        assert_eq!(failures(&steward, number), Some(expected), "they are on no path all the same");
    }
    assert!(steward.book().get(&node(100)).is_none(), "whoever was not met leaves");
    for second in (6 * HOURS..7 * HOURS).step_by(2) {
        turn_with(&mut steward, &alive, at(second));
    }
    // Those who answer still tell of the others, who are not met.
    let met = |number| steward.book().get(&node(number)).filter(|entry| entry.is_tried()).map(Entry::failures);
    assert!(NODES.into_iter().all(|number| met(number) == alive(number).then_some(0)));
    assert!(!steward.is_cut_off(at(7 * HOURS)));
}

#[test]
fn one_that_alone_is_let_through_cuts_nobody_off() {
    is_cut_off_by(&[3], |number| number != 7);
}

#[test]
fn two_that_are_let_through_cut_nobody_off() {
    is_cut_off_by(&[3, 18], |number| number % 4 != 1);
}

#[test]
fn newcomers_and_strangers_are_no_company() {
    let mut room = Room::new(64, 64);
    let mut steward = steward(&mut room);
    acquainted(&mut steward);
    let now = at(400);
    assert!(steward.is_cut_off(now));
    // Met for the first time; or on links that somebody's onion made this node open.
    for number in 100..110 {
        steward.handle_told(with(number, |_| ()), Teller::Announced, now).unwrap();
        test_begins(&mut steward, number, now);
        steward.handle_shown(with(number, |_| ()), address(number), now).unwrap();
    }
    for number in NODES {
        steward.handle_time(node(number), address(number), now.date, now);
        steward.handle_shown(shown(number, now.date), address(number), now).unwrap();
    }
    assert!(steward.is_cut_off(now) && !steward.is_lonely(now.instant));
    // Whoever is made up by somebody on the line can be met as often as he likes.
    let made_up = |steward: &mut Steward<'_, Card>| {
        for number in 100..110 {
            test_begins(steward, number, now);
            steward.handle_shown(with(number, |_| ()), address(number), now).unwrap();
            steward.handle_hop_succeeded(&node(number), now);
        }
    };
    made_up(&mut steward);
    assert!(steward.is_cut_off(now));
    let is_proven = |steward: &Steward<'_, Card>, number| steward.book().get(&node(number)).unwrap().is_proven();
    for number in [1, 2] {
        meet(&mut steward, number, now, now.date).unwrap();
        meet(&mut steward, number, now, now.date).unwrap();
    }
    assert!(steward.is_cut_off(now), "each group once");
    meet(&mut steward, 3, now, now.date).unwrap();
    assert!(!steward.is_cut_off(now) && steward.is_cut_off(at(701)));
    assert!((100..110).all(|number| !is_proven(&steward, number)));
    made_up(&mut steward);
    assert!((100..110).all(|number| is_proven(&steward, number)), "met while it is not cut off");
    // Nobody becomes an acquaintance by moving, either.
    let mover = with(110, |_| ());
    let moved = with(110, |d| {
        d.sequence += 1;
        d.addresses[0].set_port(77);
    });
    for card in [mover, moved] {
        assert!(steward.is_cut_off(at(710)));
        steward.handle_shown(card.clone(), card.address(), at(710)).unwrap();
        assert!(!is_proven(&steward, 110));
    }
    steward.handle_clock_set(now);
    assert!(steward.is_cut_off(now));
}

#[test]
fn where_few_groups_are_known_half_of_them_have_to_answer() {
    // Nodes in these groups; the last one fails, and is judged by those of other groups.
    for (groups, answering, leaves) in [
        (&[1, 2, 3][..], &[0u16][..], true),
        (&[1, 2, 3], &[], false),
        (&[1, 2, 2], &[0], true),
        (&[1, 2, 2], &[1], false),
        (&[1, 1, 1], &[0], true),
        (&[1, 1, 1], &[], false),
        (&[1, 2, 3, 4], &[0], false),
        (&[1, 2, 3, 4], &[0, 2], true),
        (&[1, 2, 3, 4, 5, 6, 7], &[0, 2], false),
        (&[1, 2, 3, 4, 5, 6, 7], &[0, 2, 4], true),
        (&[1, 2, 2, 2, 3], &[0], true),
    ] {
        let mut room = Room::new(64, 64);
        let mut steward = steward(&mut room);
        let cards: StdVec<Card> = (0..).zip(groups).map(|(number, &group)| lasting(number, group)).collect();
        for _met_twice in 0..2 {
            for (number, card) in (0..).zip(&cards) {
                test_begins(&mut steward, number, at(0));
                steward.handle_shown(card.clone(), card.address(), at(0)).unwrap();
            }
        }
        let last = cards.last().unwrap().node();
        for hour in 1..20 {
            answering.iter().for_each(|&number| steward.handle_hop_succeeded(&node(number), at(hour * HOURS)));
            steward.handle_unreached(&last, Unreached::Link, at(hour * HOURS));
        }
        assert_eq!(steward.book().get(&last).is_none(), leaves, "{groups:?} {answering:?}");
    }
}

/// A node whose descriptor is valid for years.
fn lasting(number: u16, group: u8) -> Card {
    let lasting = Descriptor { valid_until: later(1 << 30), ..descriptor(number) };
    shared(crate::phonebook::testing::in_group(lasting, group))
}

#[test]
fn a_node_for_which_the_network_has_become_another_is_not_cut_off_for_ever() {
    let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
    let mut steward = steward(&mut room);
    acquainted(&mut steward);
    // While it was off all have gone; others answer at once, but they could be made up.
    let day = |days: u64| at(days * 24 * HOURS);
    let others = |steward: &mut Steward<'_, Card>, now| {
        for number in (100..110).chain(100..110) {
            let card = lasting(number, number as u8);
            test_begins(steward, number, now);
            steward.handle_time(node(number), card.address(), now.date, now);
            steward.handle_shown(card.clone(), card.address(), now).unwrap();
        }
    };
    others(&mut steward, day(5));
    assert!(steward.is_cut_off(day(5)));
    others(&mut steward, day(8));
    assert!(!steward.is_cut_off(day(8)));
    for hour in 0..20 {
        others(&mut steward, at(8 * 24 * HOURS + hour * HOURS));
        steward.handle_unreached(&node(3), Unreached::Link, at(8 * 24 * HOURS + hour * HOURS));
    }
    assert!(steward.book().get(&node(3)).is_none());
}

#[test]
fn idle_turns_look_for_company() {
    let mut room = Room::new(64, 64);
    let mut steward = steward(&mut room);
    acquainted(&mut steward);
    meet_all(&mut steward, NODES, at(1));
    let mut turn = |second: u64| {
        steward.handle_hop_succeeded(&node(1), at(second));
        steward.poll_test(true, at(second), &mut rng(second)).0
    };
    // Long before anything is decided by it.
    assert_eq!((turn(100), turn(150)), (None, None));
    let (one, other) = (turn(152).unwrap(), turn(153).unwrap());
    steward.handle_hop_succeeded(&node(1), at(303));
    assert!(one.node != other.node && !one.urgent);
    for (test, cut_off) in [(one, true), (other, false)] {
        answer(&mut steward, &test, true, at(304));
        assert_eq!(steward.is_cut_off(at(304)), cut_off);
    }
}
