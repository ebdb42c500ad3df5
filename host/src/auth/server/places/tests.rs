use proptest::prelude::*;

use super::*;

fn ip(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

/// Whether a connection has been told to give way.
async fn closed(admitted: &Admitted) -> bool {
    tokio::select! {
        biased;
        () = admitted.notice.notified() => true,
        () = std::future::ready(()) => false,
    }
}

/// A request of this connection is answered.
fn answer(places: &mut Places, one: &Admitted, sealed: bool) {
    assert!(places.busy(one.id) && places.waits(one.id, sealed));
}

#[tokio::test]
async fn silent_ones_give_way_to_newcomers_the_oldest_first() {
    let mut places = Places::new(3, 3);
    let mut all: Vec<_> = (0..3).map(|number| places.admit(ip(number)).unwrap()).collect();
    answer(&mut places, &all[0], true);
    for expected in [1, 2, 3, 4] {
        let next = places.admit(ip(10 + expected as u8)).unwrap();
        assert!(next.evicted);
        for (number, one) in all.iter().enumerate() {
            assert_eq!(closed(one).await, number == expected, "{number} when {expected} was due");
        }
        all.push(next);
    }
}

#[tokio::test]
async fn answered_ones_do_not_keep_newcomers_from_speaking() {
    let mut places = Places::new(10, 10);
    let answered: Vec<_> = (0..10).map(|number| places.admit(ip(number)).unwrap()).collect();
    for one in &answered {
        answer(&mut places, one, true);
    }
    // The last to be answered is the last to go.
    assert!(places.waits(answered[0].id, true));
    let newcomers: Vec<_> = (0..5).map(|number| places.admit(ip(20 + number)).unwrap()).collect();
    for one in &newcomers {
        assert!(!closed(one).await);
    }
    for (number, one) in answered.iter().enumerate() {
        assert_eq!(closed(one).await, (1..=5).contains(&number), "{number}");
    }
    // Half of the places are the answered ones' to keep.
    let _next = places.admit(ip(30)).unwrap();
    assert!(closed(&newcomers[0]).await);
}

#[tokio::test]
async fn asking_for_the_key_buys_no_time() {
    let mut places = Places::new(4, 4);
    let askers = [places.admit(ip(1)).unwrap(), places.admit(ip(2)).unwrap()];
    let later = [places.admit(ip(3)).unwrap(), places.admit(ip(4)).unwrap()];
    for _ in 0..3 {
        for one in &askers {
            answer(&mut places, one, false);
        }
    }
    for _ in 0..2 {
        assert!(places.admit(ip(5)).unwrap().evicted);
    }
    assert!(closed(&askers[0]).await && closed(&askers[1]).await);
    assert!(!closed(&later[0]).await && !closed(&later[1]).await);
}

#[tokio::test]
async fn who_floods_pushes_out_their_own() {
    let mut places = Places::new(10, 10);
    let honest = [places.admit(ip(1)).unwrap(), places.admit(ip(2)).unwrap()];
    for _ in 0..1000 {
        places.admit(ip(66)).unwrap();
    }
    for one in &honest {
        assert!(!closed(one).await);
    }
    assert_eq!((places.entries.len(), places.count(ip(66))), (10, 8));
}

#[tokio::test]
async fn an_address_has_its_share_at_most() {
    let mut places = Places::new(10, 4);
    let first = places.admit(ip(1)).unwrap();
    for _ in 0..3 {
        assert!(!places.admit(ip(1)).unwrap().evicted);
    }
    assert!(places.admit(ip(1)).unwrap().evicted);
    assert!(closed(&first).await);
    assert_eq!(places.entries.len(), 4);
}

#[tokio::test]
async fn requests_in_work_are_never_dropped() {
    let mut places = Places::new(2, 2);
    let both = [places.admit(ip(1)).unwrap(), places.admit(ip(2)).unwrap()];
    assert!(both.iter().all(|one| places.busy(one.id)));
    assert!(places.admit(ip(3)).is_none());
    assert!(places.waits(both[1].id, true));
    assert!(places.admit(ip(3)).unwrap().evicted);
    assert!(!closed(&both[0]).await && closed(&both[1]).await);
    // What the evicted one still reports changes nothing, and it does not begin.
    assert!(!places.busy(both[1].id) && !places.waits(both[1].id, true));
    places.leave(both[1].id);
    places.leave(both[0].id);
    assert_eq!((places.entries.len(), places.groups.len()), (1, 1));
}

#[tokio::test]
async fn when_the_server_stops_only_what_is_in_work_is_finished() {
    let mut places = Places::new(4, 4);
    let all = [1, 2, 3].map(|number| places.admit(ip(number)).unwrap());
    answer(&mut places, &all[0], true);
    assert!(places.busy(all[1].id));
    places.close();
    assert!(closed(&all[0]).await && !closed(&all[1]).await && closed(&all[2]).await);
    assert!(places.admit(ip(4)).is_none());
    assert!(!places.busy(all[0].id) && !places.busy(all[2].id));
    assert!(!places.waits(all[1].id, true), "answered, and no other request follows");
    assert!(!places.busy(all[1].id));
    places.leave(all[1].id);
    assert_eq!((places.entries.len(), places.groups.len()), (0, 0));
}

/// Would take minutes if each newcomer were weighed against all others.
#[test]
fn sixty_thousand_connections_are_no_burden() {
    const MANY: usize = 60_000;
    let mut places = Places::new(MANY, MANY);
    let address = |number: usize| IpAddr::from((number as u32 % 1000).to_be_bytes());
    for number in 0..MANY {
        let one = places.admit(address(number)).unwrap();
        if number % 2 == 0 {
            answer(&mut places, &one, number % 4 == 0);
        }
    }
    for number in 0..MANY {
        assert!(places.admit(address(number * 7)).unwrap().evicted);
    }
    assert_eq!(places.entries.len(), MANY);
    places.close();
    assert_eq!((places.entries.len(), places.groups.len(), places.ranks.silent.len()), (0, 0, 0));
}

/// What happens to the table; numbers name connections that there are, and wrap.
#[derive(Debug, Clone, Copy)]
enum Event {
    Admit(u8),
    Busy(usize),
    Waits(usize, bool),
    Leave(usize),
    EvictOne,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (0..4u8).prop_map(Event::Admit),
        2 => any::<usize>().prop_map(Event::Busy),
        3 => any::<(usize, bool)>().prop_map(|(number, sealed)| Event::Waits(number, sealed)),
        1 => any::<usize>().prop_map(Event::Leave),
        1 => Just(Event::EvictOne),
    ];
    proptest::collection::vec(event, 0..200)
}

/// The rules at the top of this file, as simple as they can be written.
fn first_to_give_way(places: &Places, of: Option<IpAddr>) -> Option<PlaceId> {
    let eligible: Vec<_> = places.entries.iter().filter(|(_, one)| of.is_none_or(|of| one.from == of)).collect();
    let count = |stage| eligible.iter().filter(|(_, one)| one.waits == Some(stage)).count();
    let stage = if count(Stage::Silent) >= count(Stage::Answered) { Stage::Silent } else { Stage::Answered };
    let connections = |from| places.entries.values().filter(|one| one.from == from).count();
    let candidates = eligible.iter().filter(|(_, one)| one.waits == Some(stage));
    candidates.min_by_key(|(_, one)| (Reverse(connections(one.from)), one.since)).map(|(id, _)| **id)
}

proptest! {
    #[test]
    fn who_gives_way_is_found_without_looking_at_all(events in events()) {
        let mut places = Places::new(8, 5);
        for event in events {
            let pick = |number: usize, places: &Places| {
                let mut ids: Vec<_> = places.entries.keys().copied().collect();
                ids.sort();
                (!ids.is_empty()).then(|| ids[number % ids.len()])
            };
            let before: BTreeSet<_> = places.entries.keys().copied().collect();
            let mut expected = before.clone();
            match event {
                Event::Admit(from) => {
                    let from = ip(from);
                    let of_address = before.iter().filter(|id| places.entries[id].from == from).count();
                    let full = of_address >= 5 || before.len() >= 8;
                    let first = full.then(|| first_to_give_way(&places, (of_address >= 5).then_some(from)));
                    let admitted = places.admit(from);
                    prop_assert_eq!(admitted.is_some(), first != Some(None));
                    prop_assert!(admitted.as_ref().is_none_or(|one| one.evicted == full));
                    if let Some(gone) = first.flatten() {
                        expected.remove(&gone);
                    }
                    expected.extend(admitted.map(|one| one.id));
                }
                Event::EvictOne => {
                    if let Some(gone) = first_to_give_way(&places, None) {
                        expected.remove(&gone);
                    }
                    places.evict_one();
                }
                Event::Leave(number) => {
                    if let Some(id) = pick(number, &places) {
                        expected.remove(&id);
                        places.leave(id);
                    }
                }
                Event::Busy(number) => {
                    if let Some(id) = pick(number, &places) {
                        prop_assert!(places.busy(id));
                    }
                }
                Event::Waits(number, sealed) => {
                    if let Some(id) = pick(number, &places) {
                        prop_assert!(places.waits(id, sealed));
                    }
                }
            }
            prop_assert_eq!(places.entries.keys().copied().collect::<BTreeSet<_>>(), expected);
            for stage in Stage::ALL {
                let waiting = places.entries.values().filter(|one| one.waits == Some(stage));
                prop_assert_eq!(waiting.clone().count(), *places.waiting.get(stage));
                let addresses: BTreeSet<_> = waiting.map(|one| one.from).collect();
                prop_assert_eq!(addresses.len(), places.ranks.get(stage).len());
            }
        }
    }
}
