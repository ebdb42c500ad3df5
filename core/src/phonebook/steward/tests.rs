use std::collections::BTreeSet;
use std::vec::Vec as StdVec;

use super::super::testing::{Card, NOW, Room, descriptor, later, node, rng, shared, with};
use super::super::{BookKey, FAILURES_MAX, Grouping, LastHop, NEW_PLACES, PATH_LIFETIME, StoredBook, TRIED_PLACES};
use super::*;
use crate::wire::{Descriptor, PortRange};

const HOURS: u64 = 3600;
/// Nodes of the small world: 16 relays, then 4 exits.
const NODES: core::ops::Range<u16> = 0..20;

/// `seconds` after the beginning, by both clocks.
fn at(seconds: u64) -> Now {
    Now { instant: Instant::from_millis(1000 * seconds), date: later(seconds) }
}

/// As [`at`], with a clock that is ahead.
fn ahead(seconds: u64, ahead: i64) -> Now {
    Now { date: UnixTime(NOW.0 + seconds).shifted(ahead), ..at(seconds) }
}

impl UnixTime {
    fn shifted(self, seconds: i64) -> Self {
        Self(self.0.checked_add_signed(seconds).unwrap())
    }
}

fn address(number: u16) -> SocketAddr {
    descriptor(number).addresses[0]
}

/// What node `number` shows at `date`: a descriptor for three hours, signed anew every hour.
fn shown(number: u16, date: UnixTime) -> Card {
    let hour = date.0 / HOURS;
    with(number, |d: &mut Descriptor| {
        d.sequence = hour;
        (d.valid_from, d.valid_until) = (UnixTime(hour * HOURS - 600), UnixTime((hour + 3) * HOURS));
        if number >= 16 {
            (d.roles.relay, d.roles.exit) = (false, true);
            d.exit_ports = Vec::from_array([PortRange::ALL]);
        }
    })
}

fn number_of(node: &NodeId) -> u16 {
    NODES.chain(100..200).find(|&number| super::super::testing::node(number) == *node).unwrap()
}

fn steward(room: &mut Room) -> Steward<'_, Card> {
    let book = Phonebook::new(room.shelves(), None, BookKey::new([7; 32]), Grouping::Network);
    let paths = PathCache::new(&mut [], PATH_LIFETIME);
    Steward::new(book, paths, Guards::new(), Anchors::new(), Settings::DEFAULT, at(0))
}

/// `number` is linked to, and answers.
fn meet(steward: &mut Steward<'_, Card>, number: u16, now: Now, their_time: UnixTime) -> Result<Inserted, Refusal> {
    steward.handle_time(node(number), address(number), their_time, now);
    steward.handle_shown(shown(number, now.date), address(number), now)
}

/// All of the small world are met, three answer exchanges, and a path is drawn.
fn acquainted(steward: &mut Steward<'_, Card>) {
    for number in NODES {
        meet(steward, number, at(0), NOW).unwrap();
    }
    for number in [3, 4, 5] {
        steward.handle_exchanged(&node(number), true, at(0));
    }
    path(steward, at(0)).unwrap();
    assert_eq!(steward.guards().nodes().len(), 3);
    while steward.poll_notice().is_some() {}
}

fn path(steward: &mut Steward<'_, Card>, now: Now) -> Result<Path, PathError> {
    let request = PathRequest::new(LastHop::Exit { port: None }, now.date);
    steward.choose_path(&request, None, &mut rng(now.date.0))
}

/// What a test came to.
fn answer(steward: &mut Steward<'_, Card>, test: &Test, online: bool, now: Now) {
    if online {
        let _refused = meet(steward, number_of(&test.node), now, now.date);
    } else {
        steward.handle_unreached(&test.node, Unreached::Link, now);
    }
}

/// A turn of a running node: it looks at the clock, tests one and asks one. Says whom it tested and asked.
fn turn(steward: &mut Steward<'_, Card>, online: bool, now: Now) -> (Option<NodeId>, Option<NodeId>) {
    let mut rng = rng(now.date.0);
    steward.handle_timeout(now);
    let (test, _) = steward.poll_test(now.date.0.is_multiple_of(30), now, &mut rng);
    if let Some(test) = &test {
        answer(steward, test, online, now);
    }
    let asked = if now.date.0.is_multiple_of(10) { steward.whom(now, &mut rng) } else { None };
    if let Some(asked) = asked {
        if online {
            steward.handle_hop_succeeded(&asked, now);
            let teller = Teller::Peer(address(number_of(&asked)));
            for number in NODES {
                let _known = steward.handle_told(shown(number, now.date), teller, now);
            }
        }
        steward.handle_exchanged(&asked, online, now);
    }
    (test.map(|test| test.node), asked)
}

fn all_valid(steward: &Steward<'_, Card>, now: Now) -> bool {
    steward.book().iter().filter(|entry| entry.is_tried() && entry.is_valid_at(now.date)).count() == NODES.len()
}

/// Anchors and guards, each once.
fn links(steward: &Steward<'_, Card>) -> BTreeSet<NodeId> {
    steward.anchors().nodes().iter().copied().chain(steward.guards().nodes()).collect()
}

#[test]
fn a_node_that_was_off_for_four_hours_finds_everybody_again() {
    let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
    let mut before = steward(&mut room);
    acquainted(&mut before);
    let mut bytes = StdVec::new();
    before.emit(&mut |piece: &[u8]| bytes.extend_from_slice(piece));
    let stored = StoredBook::parse(&bytes).unwrap();
    let guards = Guards::from_bytes(&before.guards().to_bytes()).unwrap();

    let begin = 4 * HOURS;
    let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
    let take = |descriptor| Some(shared(descriptor));
    let book = Phonebook::restore(room.shelves(), None, Grouping::Network, &stored, at(begin).date, take);
    let paths = PathCache::new(&mut [], PATH_LIFETIME);
    let mut after = Steward::new(book, paths, guards.clone(), stored.anchors().clone(), Settings::DEFAULT, at(begin));
    assert_eq!(after.poll_notice(), Some(Notice::LinksDue));
    assert!(path(&mut after, at(begin)).is_err() && after.whom(at(begin), &mut rng(1)).is_none(), "all have expired");

    // For ten minutes nobody answers. Anchors and guards are the first to be tested, and are again; nobody is given up.
    let links = links(&after);
    let mut tested = StdVec::new();
    for second in (0..600).step_by(2) {
        let (test, asked) = turn(&mut after, false, at(begin + second));
        tested.extend(test);
        assert_eq!(asked, None);
        assert_eq!(after.book().len(), NODES.len());
    }
    let first: BTreeSet<_> = tested[..links.len()].iter().copied().collect();
    assert_eq!(first, links);
    for link in &links {
        let times = tested.iter().filter(|tested| *tested == link).count();
        assert!(times >= 5, "{times}");
    }
    assert!(tested.iter().any(|tested| !links.contains(tested)), "others have their turn, too");
    assert!(after.book().iter().all(|entry| entry.failures() == 0));

    // Then they do.
    let begin = begin + 600;
    let mut asked = StdVec::new();
    for second in (0..900).step_by(2) {
        asked.extend(turn(&mut after, true, at(begin + second)).1);
        assert_eq!(after.book().len(), NODES.len());
        if second == 120 {
            assert!(all_valid(&after, at(begin + second)));
        }
    }
    let anchors: BTreeSet<_> = stored.anchors().nodes().iter().copied().collect();
    let first_asked: BTreeSet<_> = asked[..4].iter().copied().collect();
    assert!(anchors.is_subset(&first_asked), "with at most one before whose test came first");
    assert_eq!(*after.guards(), guards);
    assert!(guards.nodes().contains(&path(&mut after, at(begin + 900)).unwrap().hops()[0].node));
}

#[test]
fn a_node_that_was_cut_off_for_four_hours_finds_everybody_again() {
    let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
    let mut steward = steward(&mut room);
    acquainted(&mut steward);
    let guards = steward.guards().clone();
    for second in (2..4 * HOURS).step_by(2) {
        turn(&mut steward, false, at(second));
        assert_eq!(steward.book().len(), NODES.len(), "{second}");
    }
    assert!(path(&mut steward, at(4 * HOURS)).is_err());
    for second in (4 * HOURS..4 * HOURS + 900).step_by(2) {
        turn(&mut steward, true, at(second));
        assert_eq!(steward.book().len(), NODES.len(), "{second}");
    }
    assert!(all_valid(&steward, at(4 * HOURS + 900)));
    assert_eq!(*steward.guards(), guards);
    assert!(guards.nodes().contains(&path(&mut steward, at(4 * HOURS + 900)).unwrap().hops()[0].node));
}

#[test]
fn a_machine_that_has_slept_for_four_hours_forgets_nobody() {
    let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
    let mut steward = steward(&mut room);
    acquainted(&mut steward);
    for second in (2..600).step_by(2) {
        turn(&mut steward, true, at(second));
    }
    let guards = steward.guards().clone();
    while steward.poll_notice().is_some() {}
    // Its own time has stood still.
    let woken = |second: u64| ahead(second, 4 * HOURS as i64);
    for second in (600..1500).step_by(2) {
        turn(&mut steward, true, woken(second));
        assert_eq!(steward.book().len(), NODES.len(), "{second}");
        if second == 600 {
            assert_eq!(steward.poll_notice(), Some(Notice::ClockSet));
            assert_eq!(steward.poll_notice(), Some(Notice::LinksDue));
        }
    }
    assert!(all_valid(&steward, woken(1500)));
    assert_eq!(*steward.guards(), guards);
}

#[test]
fn what_has_expired_is_swept_once_others_have_answered_for_long_enough() {
    let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
    let mut steward = steward(&mut room);
    acquainted(&mut steward);
    let told = |number, until: u64| with(number, |d| d.valid_until = later(until));
    steward.handle_told(told(100, 30), Teller::Announced, at(0)).unwrap();
    let known = |steward: &Steward<'_, Card>| steward.book().get(&node(100)).is_some();
    assert!(!steward.is_clock_in_doubt());
    let look = |steward: &mut Steward<'_, Card>, second: u64| {
        steward.handle_hop_succeeded(&node(1), at(second));
        steward.handle_timeout(at(second));
    };
    (0..300).for_each(|second| look(&mut steward, second));
    assert!(known(&steward), "others may yet have to show what is new of them");
    (300..361).for_each(|second| look(&mut steward, second));
    assert!(!known(&steward));
    // Nobody answers, or the clock is in doubt.
    steward.handle_told(told(100, 900), Teller::Announced, at(361)).unwrap();
    (361..1000).for_each(|second| steward.handle_timeout(at(second)));
    assert!(known(&steward) && steward.is_lonely(at(1000).instant));
    for number in 0..3 {
        meet(&mut steward, number, at(1000), later(9000)).unwrap();
        assert!(number > 0 || !steward.is_lonely(at(1000).instant));
    }
    // The three that have spoken last are outvoted by the others of before; so they all have to.
    for number in NODES {
        meet(&mut steward, number, at(1000), later(9000)).unwrap();
    }
    assert!(steward.is_clock_in_doubt());
    (1000..2000).for_each(|second| look(&mut steward, second));
    assert!(known(&steward));
}

#[test]
fn one_peer_that_agrees_does_not_lift_the_doubt_where_others_are_known() {
    let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
    let mut steward = steward(&mut room);
    assert!(steward.is_clock_in_doubt());
    meet(&mut steward, 0, at(0), NOW).unwrap();
    assert!(!steward.is_clock_in_doubt(), "nobody else is known");
    meet(&mut steward, 1, at(0), NOW).unwrap();
    assert!(!steward.is_clock_in_doubt());
    steward.handle_clock_set(at(1));
    assert!(steward.is_clock_in_doubt());
    meet(&mut steward, 0, at(1), NOW).unwrap();
    assert!(steward.is_clock_in_doubt(), "the other one has not said so");
    // What others cost while it is in doubt: circuits nothing, links what they always cost.
    steward.handle_hop_failed(&node(0), at(2));
    steward.handle_unreached(&node(0), Unreached::Validity, at(2));
    assert_eq!(steward.book().get(&node(0)).unwrap().failures(), 0);
    steward.handle_unreached(&node(1), Unreached::Link, at(2));
    assert_eq!(steward.book().get(&node(1)).unwrap().failures(), 1);
    meet(&mut steward, 1, at(3), NOW).unwrap();
    assert!(!steward.is_clock_in_doubt());
    steward.handle_hop_failed(&node(0), at(4));
    steward.handle_unreached(&node(1), Unreached::Validity, at(4));
    assert!([0, 1].iter().all(|&number| steward.book().get(&node(number)).unwrap().failures() == 1));
}

#[test]
fn the_owner_hears_of_a_wrong_clock_once() {
    let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
    let mut steward = steward(&mut room);
    acquainted(&mut steward);
    let say = |steward: &mut Steward<'_, Card>, now: Now| {
        NODES.for_each(|number| steward.handle_time(node(number), address(number), at(10).date, now));
        core::iter::from_fn(|| steward.poll_notice()).collect::<StdVec<_>>()
    };
    let wrong = ahead(10, 7200);
    assert_eq!(
        say(&mut steward, wrong),
        [Notice::ClockSet, Notice::LinksDue, Notice::ClockWrong { seconds: 7200, peers: 3 }]
    );
    assert_eq!(say(&mut steward, wrong), []);
    assert_eq!(say(&mut steward, at(10)), [Notice::ClockSet, Notice::LinksDue, Notice::ClockRight]);
    // One that runs on as time passes was not set.
    assert_eq!(say(&mut steward, ahead(100, 59)), []);
}

#[test]
fn failures_are_not_the_others_while_nobody_answers() {
    let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
    let mut steward = steward(&mut room);
    acquainted(&mut steward);
    let failures = |steward: &Steward<'_, Card>, number| steward.book().get(&node(number)).unwrap().failures();
    steward.handle_unreached(&node(3), Unreached::Link, at(300));
    assert_eq!(failures(&steward, 3), 1);
    steward.handle_unreached(&node(3), Unreached::Link, at(10_000));
    steward.handle_hop_failed(&node(4), at(10_000));
    assert_eq!((failures(&steward, 3), failures(&steward, 4)), (1, 0));
    while steward.poll_notice().is_some() {}

    // Whoever goes on failing while others answer leaves, and is no anchor any more.
    assert!(steward.anchors().nodes().contains(&node(3)));
    for round in 1..FAILURES_MAX {
        let now = at(10_000 + 3600 * u64::from(round));
        steward.handle_hop_succeeded(&node(5), now);
        steward.handle_unreached(&node(3), Unreached::Link, now);
        assert_eq!(steward.book().get(&node(3)).is_some(), round + 1 < FAILURES_MAX);
    }
    assert!(core::iter::from_fn(|| steward.poll_notice()).any(|notice| notice == Notice::Dropped(node(3))));
    assert!(!steward.anchors().nodes().contains(&node(3)));
    assert!(steward.take_changed() && !steward.take_changed());
}

#[test]
fn an_anchor_waits_until_its_test_has_ended() {
    let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
    let mut steward = steward(&mut room);
    acquainted(&mut steward);
    // At a start with two valid anchors and one that has expired: the two are asked at once, it as soon as it is renewed.
    let now = at(3 * HOURS + 1200);
    for number in (0..20).filter(|&number| number != 4) {
        meet(&mut steward, number, now, now.date).unwrap();
    }
    let ask = |steward: &mut Steward<'_, Card>, now| steward.whom(now, &mut rng(3)).unwrap();
    assert_eq!([0; 2].map(|_| ask(&mut steward, now)), [node(5), node(3)]);
    assert!((0..20).all(|_| ask(&mut steward, now) != node(4)));
    meet(&mut steward, 4, now, now.date).unwrap();
    assert_eq!(ask(&mut steward, now), node(4));
    assert_eq!(steward.ask_first, []);

    // Another time its test fails.
    let now = at(8 * HOURS);
    meet(&mut steward, 1, now, now.date).unwrap();
    assert_eq!(steward.ask_first.len(), 3);
    steward.handle_unreached(&node(4), Unreached::Link, now);
    assert_eq!(steward.ask_first, [node(5), node(3)]);
    assert_eq!(ask(&mut steward, now), node(1), "the others wait");
    steward.book_mut().remove(&node(5));
    assert_eq!(ask(&mut steward, now), node(1));
    assert_eq!(steward.ask_first, [node(3)]);
}

#[test]
fn a_guard_is_given_up_only_by_a_node_that_others_answer() {
    let mut room = Room::new(TRIED_PLACES, NEW_PLACES);
    let mut steward = steward(&mut room);
    acquainted(&mut steward);
    let [first, _, _] = *steward.guards().nodes().as_array().unwrap();
    steward.book_mut().remove(&first);
    let day = 24 * HOURS;
    let others = NODES.filter(|&number| node(number) != first && !steward.guards().nodes().contains(&node(number)));
    let teller = others.clone().next().unwrap();
    let look = |steward: &mut Steward<'_, Card>, day_from: u64, online: bool| {
        for second in (0..1200).step_by(60) {
            let now = at(day_from * day + second);
            if online {
                let _met = meet(steward, teller, now, now.date);
            }
            steward.handle_timeout(now);
        }
        steward.guards().nodes().contains(&first)
    };
    let unknown = steward.guards().clone();
    assert!(look(&mut steward, 1, false) && look(&mut steward, 22, false));
    assert_eq!(*steward.guards(), unknown, "no dates while nobody answers");
    assert!(look(&mut steward, 30, true));
    assert_ne!(*steward.guards(), unknown);
    assert!(look(&mut steward, 49, true) && look(&mut steward, 51, false));
    assert!(!look(&mut steward, 52, true));
}
