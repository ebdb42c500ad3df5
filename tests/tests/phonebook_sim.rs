//! Nodes that find each other: small networks of the simulator behind the tables (`cargo run --release -p bulbil-tests --bin phonebook-tables`).
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bulbil_core::phonebook::exchange::{Refused, Settings};
use bulbil_core::phonebook::{ClockVerdict, Entry, Evidence, GUARDS_MAX, NetworkGroup, Source};
use bulbil_core::wire::NodeId;
use bulbil_tests::metropolis::tables::churn::Churn;
use bulbil_tests::metropolis::{City, Gang, Plan, Start, Trade, bits_given_away, run};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Networks in bad weather, everything looked at.
fn plan(seed: u64, founders: usize) -> Plan {
    Plan {
        connects_lost: 300,
        link_life: Some(HOUR),
        splitting: true,
        audit_stride: 101,
        ..Plan::standing(seed, founders)
    }
}

/// Whether everybody knows and has met everybody, and nobody who is gone.
fn all_met(city: &City<'_, '_, '_>) -> bool {
    let there = city.there();
    city.living().all(|citizen| {
        let view = city.view_of(citizen.node, &there);
        view.met == view.there && view.gone == 0
    })
}

fn describe(city: &City<'_, '_, '_>) -> String {
    let there = city.there();
    let line = |node| format!("{node} {:?} {:?}\n", city.view_of(node, &there), city.citizen(node).counts);
    city.living().map(|citizen| line(citizen.node)).collect()
}

#[test]
fn the_same_seed_gives_the_same_run_to_the_byte() {
    let trace = |seed| {
        let gang = Gang::apart(3, 2, Trade::Invent(40), Duration::from_secs(10));
        let requests = Some(MINUTE);
        let rotation = Some(5 * MINUTE);
        let plan = Plan { heirs: 4, gang, requests, rotation, start: Start::FourKnown, ..plan(seed, 16) };
        run(&plan, |city| {
            city.call_gang();
            let mut churn = Churn::new(seed, city, 600);
            (0..8).for_each(|_| churn.pass_minute(city));
            (city.network().trace_hash(), city.network().steps())
        })
    };
    let first = trace(7);
    assert_eq!(first, trace(7));
    assert_ne!(first.0, trace(8).0);
}

#[test]
fn sixty_nodes_that_know_four_find_each_other_and_the_network_lives_on_without_these() {
    let plan = Plan { start: Start::FourKnown, heirs: 2, requests: Some(5 * MINUTE), ..plan(1, 60) };
    run(&plan, |city| {
        let found = city.run_until(10 * SECOND, HOUR, |city| all_met(city));
        assert!(found, "{}", describe(city));
        assert!(city.now() < 20 * MINUTE, "{:?}", city.now());

        (0..4).for_each(|node| city.kill(node));
        let heir = city.heirs().start;
        city.bear(heir, &[37]);
        let found = city.run_until(MINUTE, 2 * HOUR, |city| all_met(city));
        assert!(found, "the dead leave every phonebook, the newcomer comes into every one:\n{}", describe(city));
        assert_eq!(city.living().count(), 57);
        let requests = |city: &City<'_, '_, '_>| {
            city.living()
                .fold((0, 0), |(in_time, lost), citizen| (in_time + citizen.counts.in_time, lost + citizen.counts.lost))
        };
        let before = requests(city);
        city.run_for(20 * MINUTE);
        let after = requests(city);
        assert!(after.0 > before.0 + 150, "{before:?} {after:?}");
        assert!(after.1 <= before.1 + 2, "{before:?} {after:?}");
    });
}

#[test]
fn a_client_joins_finds_everybody_and_is_in_no_phonebook() {
    let plan = Plan { heirs: 2, clients: 2, requests: Some(MINUTE), ..plan(13, 20) };
    run(&plan, |city| {
        let clients = city.heirs();
        clients.clone().for_each(|client| city.bear(client, &[client % 20]));
        let full = |city: &City<'_, '_, '_>| clients.clone().all(|client| city.view(client).met == 20);
        assert!(city.run_until(10 * SECOND, 20 * MINUTE, |city| full(city)), "{}", describe(city));
        city.run_for(10 * MINUTE);
        for client in clients.clone() {
            let (id, counts) = (city.citizen(client).id, city.citizen(client).counts);
            assert!(city.living().all(|citizen| citizen.book().get(&id).is_none()));
            assert!(counts.answered > 5 && counts.in_time > 5, "{counts:?}");
            assert!(counts.lost * 5 <= counts.in_time, "{counts:?}");
        }
    });
}

#[test]
fn requests_get_through_while_nodes_come_and_go_and_keys_change() {
    let plan = Plan { heirs: 40, requests: Some(MINUTE), rotation: Some(6 * MINUTE), ..plan(2, 60) };
    run(&plan, |city| {
        let mut churn = Churn::new(2, city, 40);
        (0..30).for_each(|_| churn.pass_minute(city));
        let (mut at_once, mut in_time, mut lost) = (0, 0, 0);
        for citizen in city.citizens() {
            at_once += citizen.counts.at_once;
            in_time += citizen.counts.in_time;
            lost += citizen.counts.lost;
        }
        assert!(in_time > 1_500, "{in_time}");
        // Two of three nodes die in an hour and a half, half of them without a word.
        assert!(lost * 20 <= in_time, "{lost} of {in_time} lost:\n{}", describe(city));
        assert!(at_once * 2 >= in_time, "{at_once} of {in_time} at once");
    });
}

/// Whoever answers links as it should is not dropped for answers that are none: a test that it passes forgives it, because circuits and answers can be spoilt by
/// others and links cannot. It gets nothing by it either.
#[test]
fn what_is_no_answer_is_refused_and_counted_by_kind_and_gets_its_sender_nothing() {
    let plan = Plan { gang: Gang::apart(2, 2, Trade::Forge, HOUR), ..plan(3, 8) };
    run(&plan, |city| {
        city.call_gang();
        city.run_for(2 * HOUR);
        let forgers: Vec<NodeId> = city.gang().map(|node| city.citizen(node).id).collect();
        let mut refused = vec![0; Refused::ALL.len()];
        for node in 0..8 {
            let citizen = city.citizen(node);
            for (count, (_, more)) in refused.iter_mut().zip(citizen.tally.iter()) {
                *count += more;
            }
            assert!(citizen.steward.anchors().nodes().iter().all(|anchor| !forgers.contains(anchor)), "{node}");
            assert_eq!(city.view(node).invented, 0, "nothing forged was taken");
            assert_eq!(city.view(node).known, 9, "and nobody pushed out");
        }
        for (kind, count) in Refused::ALL.into_iter().zip(refused) {
            assert!(count > 0 || !kind.is_fault(), "{kind}");
        }
        let asked = |node| city.citizen(node).counts.asked_of;
        let honest = (0..8).map(asked).sum::<u64>() / 8;
        for forger in city.gang() {
            assert!(asked(forger) * 4 <= honest * 5, "{} and {honest}: asked no more than others", asked(forger));
        }
    });
}

#[test]
fn a_flood_of_inventions_fills_its_share_of_the_buckets_and_nothing_else() {
    // Sources: one network group, and announcements. Each reaches 8 buckets of 32 places.
    let most = 2 * 8 * 32;
    let gang = Gang::apart(6, 1, Trade::Invent(2_000), SECOND);
    let plan = Plan { gang, ..plan(4, 16) };
    run(&plan, |city| {
        let names = |city: &City<'_, '_, '_>, node: usize| -> HashSet<NodeId> {
            city.citizen(node).book().iter().map(Entry::node).collect()
        };
        let before: Vec<_> = (0..16).map(|node| names(city, node)).collect();
        city.call_gang();
        city.set_victims(vec![0, 1]);
        let mut highest = 0;
        for _ in 0..40 {
            city.run_for(MINUTE);
            for victim in [0, 1] {
                let invented = city.view(victim).invented;
                assert!(invented <= most, "{invented}");
                highest = highest.max(invented);
            }
        }
        assert!(highest > 200, "it was a flood: {highest}");
        for (node, before) in before.iter().enumerate() {
            assert!(before.is_subset(&names(city, node)), "nobody had to go for it");
            let tried = city.citizen(node).book().iter().filter(|entry| entry.is_tried()).count();
            assert!(tried <= 15 + 6, "only who is there is met");
        }
        // An invention spreads no further than those whom its inventors tell themselves.
        let honest: HashSet<NetworkGroup> = (0..16).map(|node| city.citizen(node).address.ip().into()).collect();
        for node in 0..16 {
            let invented = |entry: &NodeId| !city.names().contains_key(entry);
            for entry in city.citizen(node).book().iter().filter(|entry| invented(&entry.node())) {
                assert!(!matches!(entry.source(), Source::Peer(group) if honest.contains(&group)), "{entry:?}");
            }
        }
    });
}

#[test]
fn a_newcomer_joins_while_attackers_flood_everybody_with_announcements() {
    let gang = Gang::apart(6, 6, Trade::Invent(2_000), SECOND);
    let plan = Plan { gang, heirs: 1, ..plan(10, 16) };
    run(&plan, |city| {
        city.call_gang();
        city.set_victims((0..17).collect());
        city.run_for(10 * MINUTE);
        let newcomer = city.heirs().start;
        city.bear(newcomer, &[3]);
        let honest: Vec<NodeId> = (0..16).map(|node| city.citizen(node).id).collect();
        let met = |city: &City<'_, '_, '_>| {
            let book = city.citizen(newcomer).book();
            honest.iter().filter(|node| book.get(node).is_some_and(Entry::is_tried)).count()
        };
        let found = city.run_until(10 * SECOND, 10 * MINUTE, |city| met(city) >= 8 && !city.path(newcomer).is_empty());
        assert!(found, "{} met:\n{}", met(city), describe(city));
        let found = city.run_until(10 * SECOND, 10 * MINUTE, |city| met(city) == 16);
        assert!(found, "{} met:\n{}", met(city), describe(city));
        let invented = |city: &City<'_, '_, '_>, hop: &NodeId| !city.names().contains_key(hop);
        for _ in 0..200 {
            let path = city.path(newcomer);
            assert!(!path.is_empty() && path.iter().all(|hop| !invented(city, hop)), "only who is there is on paths");
        }
        let id = city.citizen(newcomer).id;
        let met_by = |city: &City<'_, '_, '_>| {
            (0..16).filter(|&node| city.citizen(node).book().get(&id).is_some_and(Entry::is_tried)).count()
        };
        // Of a thousand that the others have heard of it is the one that is there, and they test one at a time: that takes them longer.
        let found = city.run_until(MINUTE, 90 * MINUTE, |city| met_by(city) >= 8);
        assert!(found, "{} have met it:\n{}", met_by(city), describe(city));
    });
}

/// Whom a node has met, and its guards.
fn acquaintances(city: &City<'_, '_, '_>, node: usize) -> (HashSet<NodeId>, Vec<NodeId>) {
    let citizen = city.citizen(node);
    let tried = citizen.book().iter().filter(|entry| entry.is_tried()).map(Entry::node);
    (tried.collect(), citizen.steward.guards().nodes().to_vec())
}

#[test]
fn who_was_cut_off_or_switched_off_for_four_hours_has_whom_it_had_met_and_its_guards() {
    let (cut_off, switched_off) = (5, 9);
    let plan = Plan { requests: Some(5 * MINUTE), rotation: Some(HOUR), restarts: 1, ..plan(11, 20) };
    run(&plan, |city| {
        city.run_for(HOUR);
        let before = [cut_off, switched_off].map(|node| {
            assert!(!city.path(node).is_empty());
            acquaintances(city, node)
        });
        assert!(before.iter().all(|(tried, guards)| tried.len() == 19 && guards.len() >= GUARDS_MAX), "{before:?}");
        city.unplug(cut_off);
        city.stop(switched_off);
        // Longer than descriptors are valid: it knows nobody any more whom it could use.
        city.run_for(4 * HOUR);
        assert_eq!(city.view(cut_off).known, 0);
        let (tried, guards) = acquaintances(city, cut_off);
        assert_eq!(tried.difference(&before[0].0).count(), 0);
        assert_eq!(before[0].0.difference(&tried).count(), 0, "nobody was given up");
        // As the guards' descriptors expired before others' did, others stood in for them.
        assert!(guards.starts_with(&before[0].1), "{guards:?}, before {:?}", before[0].1);
        city.plug(cut_off);
        city.restart(switched_off);
        assert_eq!(acquaintances(city, switched_off), before[1], "nor over a restart");

        let full = |city: &City<'_, '_, '_>, node| city.view(node).met == 19;
        let found = city.run_until(10 * SECOND, 10 * MINUTE, |city| full(city, cut_off) && full(city, switched_off));
        assert!(found, "they know everybody anew:\n{}", describe(city));
        for (node, (_, guards)) in [cut_off, switched_off].into_iter().zip(&before) {
            for _ in 0..50 {
                let first = city.path(node)[0];
                assert!(guards[..GUARDS_MAX].contains(&first), "{node} begins paths where it did");
            }
        }
        assert!(city.run_until(MINUTE, HOUR, |city| all_met(city)), "and everybody them:\n{}", describe(city));
    });
}

#[test]
fn guards_stay_through_a_day_of_churn_as_long_as_they_live() {
    let settings = Settings { exchange: 5 * MINUTE, test_idle: 3 * MINUTE, ..Settings::DEFAULT };
    let validity = 48 * HOUR;
    let plan = Plan { heirs: 40, settings, validity, link_life: None, audit_stride: 10_007, ..plan(12, 24) };
    run(&plan, |city| {
        city.run_for(10 * MINUTE);
        let mut churn = Churn::new(12, city, 5);
        let mut before: HashMap<usize, Vec<NodeId>> = HashMap::new();
        let (mut died, mut drawn) = (0, 0);
        for minute in 0..24 * 60 {
            churn.pass_minute(city);
            if minute % 10 != 0 {
                continue;
            }
            let there = city.there();
            let living: Vec<usize> = city.living().map(|citizen| citizen.node).collect();
            for node in living {
                let Some(&first) = city.path(node).first() else { continue };
                let guards = city.citizen(node).steward.guards().nodes();
                let kept = before.get(&node).into_iter().flatten();
                assert!(kept.clone().all(|guard| guards.contains(guard)), "{node}: none is given up");
                let living_before = guards.iter().take_while(|guard| **guard != first);
                let living_before = living_before.filter(|guard| there.contains(guard)).count();
                assert!(guards.contains(&first) && living_before < GUARDS_MAX, "{node}: {guards:?} {first:?}");
                died += guards.iter().filter(|guard| !there.contains(guard)).count();
                drawn += guards.len().saturating_sub(kept.count());
                before.insert(node, guards.to_vec());
            }
        }
        assert!(died > 0 && drawn > 0, "it was put to the test");
        // Of those who were there all day nobody has drawn more than stood in for guards that had died.
        let there = city.there();
        let founders = city.living().filter(|citizen| citizen.node < 24);
        for citizen in founders {
            let guards = citizen.steward.guards().nodes();
            let alive = guards.iter().filter(|guard| there.contains(guard)).count();
            assert!(alive <= GUARDS_MAX, "{}: {alive} of {}", citizen.node, guards.len());
        }
    });
}

#[test]
fn who_signs_two_descriptors_with_one_number_is_used_by_nobody_and_stays_so() {
    let gang = Gang::apart(1, 1, Trade::Equivocate, 20 * SECOND);
    let plan = Plan { gang, ..plan(5, 16) };
    run(&plan, |city| {
        city.call_gang();
        let liar = city.gang().start;
        let id = city.citizen(liar).id;
        let disputes = |city: &City<'_, '_, '_>| -> Vec<bool> {
            (0..16).map(|node| city.citizen(node).book().evidence().any(|evidence| evidence.node() == id)).collect()
        };
        city.run_until(MINUTE, 3 * HOUR, |city| disputes(city).iter().filter(|&&seen| seen).count() >= 12);
        let first = disputes(city);
        assert!(first.iter().filter(|&&seen| seen).count() >= 12, "{first:?}");
        for _ in 0..30 {
            city.run_for(MINUTE);
            let now = disputes(city);
            assert!(first.iter().zip(&now).all(|(before, now)| !before || *now), "no flapping");
        }
        for (node, disputed) in disputes(city).into_iter().enumerate() {
            if !disputed {
                continue;
            }
            let book = city.citizen(node).book();
            assert!(book.get(&id).is_none_or(Entry::is_disputed));
            let pairs = book.evidence().filter(|evidence: &&Evidence<_>| evidence.node() == id).count();
            assert_eq!(pairs, 1);
            assert!((0..50).all(|_| city.path(node).iter().all(|hop| *hop != id)), "on no path");
        }
    });
}

#[test]
fn a_clock_that_is_wrong_by_hours_is_noticed_and_costs_nobody_a_phonebook() {
    for ahead in [5 * 3_600, -5 * 3_600, 40 * 3_600] {
        run(&plan(6, 20), |city| {
            city.set_clock(3, ahead);
            let before = city.citizen(3).book().len();
            city.run_until(10 * SECOND, 30 * MINUTE, |city| {
                matches!(city.citizen(3).steward.clock(), ClockVerdict::Off { .. })
            });
            let ClockVerdict::Off { seconds, peers } = city.citizen(3).steward.clock() else {
                panic!("{:?}", city.citizen(3).steward.clock());
            };
            assert!((seconds - ahead).abs() < 60 && peers >= 3, "{seconds} {peers}");
            city.run_for(30 * MINUTE);
            assert_eq!(city.citizen(3).book().len(), before);
            for node in (0..20).filter(|&node| node != 3) {
                let verdict = city.citizen(node).steward.clock();
                assert!(!matches!(verdict, ClockVerdict::Off { .. }), "{node}: {verdict:?}");
            }
        });
    }
}

#[test]
fn a_few_who_lie_about_the_time_convince_nobody() {
    let gang = Gang::apart(4, 4, Trade::WrongClock(7_200), HOUR);
    let plan = Plan { gang, ..plan(7, 20) };
    run(&plan, |city| {
        city.call_gang();
        city.run_for(HOUR);
        for node in 0..20 {
            let verdict = city.citizen(node).steward.clock();
            assert!(!matches!(verdict, ClockVerdict::Off { .. }), "{node}: {verdict:?}");
        }
    });
}

#[test]
fn full_views_give_nothing_away() {
    run(&plan(8, 40), |city| {
        city.run_for(10 * MINUTE);
        let views = bulbil_tests::metropolis::tables::bits::views(city);
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let bits = bits_given_away(&views.full, 3, 200, &mut rng);
        // A node is missing in its own view, which is what a full view still tells.
        assert!(bits < 0.3, "{bits}");
    });
}

#[test]
fn pipes_and_tables_do_not_grow_with_time() {
    run(&plan(9, 20), |city| {
        city.run_for(30 * MINUTE);
        let pipes = city.network().pipes();
        city.run_for(90 * MINUTE);
        assert!(city.network().pipes() < 2 * pipes + 50, "{pipes}, then {}", city.network().pipes());
    });
}
