use std::collections::BTreeSet;
use std::vec::Vec as StdVec;

use super::super::testing::{Card, NOW, Room, descriptor, later, node, rng, shared, with};
use super::super::{BookKey, FAILURES_MAX, Grouping, LastHop, NEW_PLACES, PATH_LIFETIME, StoredBook, TRIED_PLACES};
use super::*;
use crate::wire::{Descriptor, PortRange};

mod company;

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

/// `number` is tested, and answers.
fn meet(steward: &mut Steward<'_, Card>, number: u16, now: Now, their_time: UnixTime) -> Result<Inserted, Refusal> {
    test_begins(steward, number, now);
    steward.handle_time(node(number), address(number), their_time, now);
    steward.handle_shown(shown(number, now.date), address(number), now)
}

fn meet_all(steward: &mut Steward<'_, Card>, numbers: impl Iterator<Item = u16>, now: Now) {
    for number in numbers {
        meet(steward, number, now, now.date).unwrap();
    }
}

fn test_begins(steward: &mut Steward<'_, Card>, number: u16, now: Now) {
    if let Some(slot) = steward.book.find(&node(number)) {
        steward.book.entry_mut(slot).unwrap().begin_test(now.date);
    }
}

/// All of the small world are met, and once more (the first five have to answer for this node not being cut off before the others are
/// believed), three answer exchanges, and a path is drawn.
fn acquainted(steward: &mut Steward<'_, Card>) {
    for number in NODES.chain(NODES) {
        meet(steward, number, at(0), NOW).unwrap();
    }
    assert!(steward.book().iter().all(Entry::is_proven) && !steward.is_cut_off(at(0)));
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
    turn_with(steward, |_| online, now)
}

/// As [`turn`], where some are there.
fn turn_with(
    steward: &mut Steward<'_, Card>,
    is_there: impl Fn(u16) -> bool,
    now: Now,
) -> (Option<NodeId>, Option<NodeId>) {
    let mut rng = rng(now.date.0);
    steward.handle_timeout(now);
    let (test, _) = steward.poll_test(now.date.0.is_multiple_of(30), now, &mut rng);
    if let Some(test) = &test {
        answer(steward, test, is_there(number_of(&test.node)), now);
    }
    let asked = if now.date.0.is_multiple_of(10) { steward.whom(now, &mut rng) } else { None };
    if let Some(asked) = asked {
        let online = is_there(number_of(&asked));
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
        (1..4).for_each(|number| steward.handle_hop_succeeded(&node(number), at(second)));
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
        [5, 6, 7].iter().for_each(|&number| steward.handle_hop_succeeded(&node(number), now));
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
    let mut room = Room::new(64, 64);
    let mut steward = steward(&mut room);
    acquainted(&mut steward);
    let nodes = steward.guards().nodes();
    steward.book_mut().remove(&nodes[0]);
    // 479 hours are over, in steps of ten minutes, and an hour is left.
    let mut bytes = steward.guards().to_bytes();
    bytes[33..37].copy_from_slice(&(6 * 479u32).to_be_bytes());
    steward.guards = Guards::from_bytes(&bytes).unwrap();
    let mut others = NODES.filter(|&number| !nodes.contains(&node(number)));
    let tellers: [u16; 3] = core::array::from_fn(|_| others.next().unwrap());
    let look = |steward: &mut Steward<'_, Card>, hours: core::ops::Range<u64>, answering: &[u16]| {
        for second in (hours.start * HOURS..hours.end * HOURS).step_by(60) {
            for &number in answering {
                let _met = meet(steward, number, at(second), at(second).date);
            }
            steward.handle_timeout(at(second));
        }
        steward.guards().nodes().contains(&nodes[0])
    };
    assert!(look(&mut steward, 0..20, &[]), "nobody answers");
    assert!(look(&mut steward, 20..40, &tellers[..2]), "too few do");
    // Between two looks any time may pass, in which this node was off or asleep.
    for day in 2..30 {
        meet(&mut steward, tellers[0], at(day * 24 * HOURS), at(day * 24 * HOURS).date).unwrap();
        steward.handle_timeout(at(day * 24 * HOURS));
    }
    assert_eq!(steward.guards().nodes(), nodes);
    assert!(!look(&mut steward, 800..802, &tellers));
    assert_eq!(steward.guards().nodes(), nodes[1..]);
}

/// What node `number` says it once was: an older descriptor, elsewhere.
fn outdated(number: u16, elsewhere: bool) -> Card {
    with(number, |d| {
        (d.sequence, d.valid_until) = (0, later(1 << 30));
        if elsewhere {
            d.addresses[0].set_port(1);
        }
    })
}

#[test]
fn a_test_that_is_neither_met_nor_told_anything_newer_has_failed() {
    let mut room = Room::new(64, 64);
    let mut steward = steward(&mut room);
    acquainted(&mut steward);
    steward.handle_told(shown(100, NOW), Teller::Announced, at(0)).unwrap();
    let company = |steward: &mut Steward<'_, Card>, now| {
        (5..8).for_each(|number| steward.handle_hop_succeeded(&node(number), now));
    };
    // It answers where it should be, again and again, and says that it is somewhere else, or was.
    let mut tests = 0;
    for second in (0..3 * HOURS).step_by(2) {
        company(&mut steward, at(second));
        while let (Some(test), _) = steward.poll_test(false, at(second), &mut rng(second)) {
            if ![node(1), node(100)].contains(&test.node) {
                continue;
            }
            tests += 1;
            let card = outdated(number_of(&test.node), true);
            assert_eq!(steward.handle_shown(card, test.address, at(second)), Err(Refusal::NotNewer));
        }
        if second == 60 {
            test_begins(&mut steward, 1, at(second));
            steward.handle_shown(outdated(1, true), address(1), at(second)).unwrap_err();
        }
    }
    assert!(steward.book().get(&node(1)).is_none() && steward.book().get(&node(100)).is_none());
    assert!(tests <= 8, "{tests}");
    // Somewhere else it says what it likes; and what is newer it may.
    steward.handle_shown(outdated(2, true), "192.0.2.1:1".parse().unwrap(), at(0)).unwrap_err();
    assert_eq!(steward.book().get(&node(2)).unwrap().failures(), 0);
}

#[test]
fn an_older_descriptor_does_not_renew_one_that_has_expired() {
    let mut room = Room::new(64, 64);
    let mut steward = steward(&mut room);
    acquainted(&mut steward);
    let now = at(5 * HOURS);
    meet_all(&mut steward, NODES.filter(|&number| number != 1), now);
    assert!(!steward.is_clock_in_doubt() && !steward.is_cut_off(now));
    let failures = |steward: &Steward<'_, Card>| steward.book().get(&node(1)).map(Entry::failures);
    test_begins(&mut steward, 1, now);
    assert_eq!(steward.handle_shown(outdated(1, false), address(1), now), Err(Refusal::NotNewer));
    assert_eq!(failures(&steward), Some(1));
    // While the known one is valid, it is a meeting.
    meet(&mut steward, 1, now, now.date).unwrap();
    assert_eq!(steward.handle_shown(outdated(1, false), address(1), now), Ok(Inserted::Met));
    assert_eq!(failures(&steward), Some(0));
}

#[test]
fn strangers_do_not_outshout_those_who_were_asked_the_time() {
    let mut room = Room::new(64, 64);
    let mut steward = steward(&mut room);
    acquainted(&mut steward);
    meet_all(&mut steward, NODES, at(1));
    assert_eq!(steward.clock(), ClockVerdict::Agrees);
    for number in 100..200 {
        steward.handle_time(node(number), address(number), at(9000).date, at(2));
        steward.handle_shown(with(number, |_| ()), address(number), at(2)).ok();
        // Nor if it is known by now, and was not asked.
        steward.handle_time(node(number), address(number), at(9000).date, at(3));
    }
    assert_eq!(steward.clock(), ClockVerdict::Agrees);
    assert!(!steward.is_clock_in_doubt());
    // Nor where there are places left for their words.
    let mut room = Room::new(64, 64);
    let mut steward = self::steward(&mut room);
    meet_all(&mut steward, (0..3).chain(0..3), at(0));
    for number in 100..112 {
        steward.handle_time(node(number), address(number), at(9000).date, at(2));
    }
    assert_eq!(steward.clock(), ClockVerdict::Agrees);
    assert!(!steward.is_clock_in_doubt());
}

#[test]
fn a_node_that_shows_what_has_expired_has_failed_its_test() {
    let mut room = Room::new(64, 64);
    let mut steward = steward(&mut room);
    acquainted(&mut steward);
    let now = at(HOURS);
    meet_all(&mut steward, NODES, now);
    let expired = with(1, |d| (d.sequence, d.valid_until) = (u64::MAX, NOW));
    test_begins(&mut steward, 1, now);
    assert_eq!(steward.handle_shown(expired.clone(), address(1), now), Err(Refusal::Expired));
    assert_eq!(steward.book().get(&node(1)).unwrap().failures(), 1);
    // Who shows it elsewhere harms nobody, and one that is not known has nothing to lose.
    assert_eq!(steward.handle_shown(expired, "192.0.2.1:1".parse().unwrap(), now), Err(Refusal::Expired));
    assert_eq!(steward.book().get(&node(1)).unwrap().failures(), 1);
    let stranger = with(100, |d| d.valid_until = NOW);
    assert_eq!(steward.handle_shown(stranger, address(100), now), Err(Refusal::Expired));
    assert!(steward.book().get(&node(100)).is_none());
}

#[test]
fn a_node_that_contradicts_itself_is_disputed_and_that_is_kept() {
    let mut room = Room::new(64, 64);
    let mut steward = steward(&mut room);
    acquainted(&mut steward);
    let known = shown(1, NOW);
    let other = with(1, |d| {
        *d = known.descriptor().clone();
        d.link_key = [9; 32];
    });
    steward.take_changed();
    test_begins(&mut steward, 1, at(1));
    assert_eq!(steward.handle_shown(other, address(1), at(1)), Err(Refusal::Disputed));
    assert!(steward.take_changed(), "the evidence is to be stored");
    assert!(steward.book().get(&node(1)).unwrap().is_disputed());
}

#[test]
fn links_that_have_shown_themselves_or_are_disputed_are_not_tested_again() {
    let mut room = Room::new(64, 64);
    let mut steward = steward(&mut room);
    acquainted(&mut steward);
    let links = links(&steward);
    // After a long silence somebody answers: the links are due.
    let now = at(2 * HOURS);
    let others = || NODES.filter(|&number| !links.contains(&node(number)));
    for number in others() {
        let _refused = meet(&mut steward, number, now, now.date);
    }
    let met = *links.first().unwrap();
    let disputed = *links.last().unwrap();
    assert_ne!(met, disputed);
    meet(&mut steward, number_of(&met), now, now.date).unwrap();
    let number = number_of(&disputed);
    let contradiction = with(number, |d| {
        *d = steward.book().get(&disputed).unwrap().descriptor().clone();
        d.link_key = [9; 32];
    });
    assert_eq!(steward.handle_shown(contradiction, address(number), now), Err(Refusal::Disputed));
    let mut tested = BTreeSet::new();
    while let (Some(test), _) = steward.poll_test(false, now, &mut rng(1)) {
        if test.urgent {
            tested.insert(test.node);
        }
    }
    assert_eq!(tested, links.iter().copied().filter(|node| ![met, disputed].contains(node)).collect());
}

#[test]
fn a_path_with_a_doubted_hop_is_not_used_again() {
    let mut room = Room::new(64, 64);
    let mut places = [const { None }; 2];
    let mut steward = steward(&mut room);
    steward.paths = PathCache::new(&mut places, PATH_LIFETIME);
    acquainted(&mut steward);
    let request = PathRequest::new(LastHop::Exit { port: None }, NOW);
    let nodes = |steward: &mut Steward<'_, Card>, seed| {
        let path = steward.choose_path(&request, Some(IsolationKey([1; 32])), &mut rng(seed)).unwrap();
        path.hops().iter().map(|hop| hop.node).collect::<StdVec<_>>()
    };
    let path = nodes(&mut steward, 1);
    assert_eq!(nodes(&mut steward, 2), path);
    // Nobody can be blamed: the hop is as good as before, and the path is another one.
    steward.handle_hop_doubted(&path[2]);
    assert_ne!(nodes(&mut steward, 3), path);
    assert_eq!(steward.book().get(&path[2]).unwrap().failures(), 0);
}
