use core::iter::repeat_with;
use std::vec::Vec;

use super::*;
use crate::crypto::testing::rng;

const ALICE: &str = "alice";

const fn at(seconds: u64) -> Instant {
    Instant::from_millis(seconds * 1000)
}

fn name(text: &str) -> Username {
    Username::new(text).unwrap()
}

fn throttle(len: usize) -> Throttle<Vec<Allowance>> {
    Throttle::new(repeat_with(Allowance::new).take(len).collect())
}

fn device() -> Fingerprint {
    Fingerprint::from_bytes([1; 32])
}

/// Answers wrongly until that is refused; how often it was not.
fn exhaust(debtor: &Debtor<'_>, now: Instant) -> u32 {
    repeat_with(|| debtor.take(now)).take_while(Result::is_ok).count() as u32
}

#[test]
fn five_are_free_and_then_one_every_half_minute() {
    let (throttle, mask) = (throttle(4), MaskKey::generate(&mut rng(1)));
    let alice = throttle.of(&name(ALICE), None, &mask);
    for _ in 0..WRONG_ANSWERS_FREE {
        assert_eq!(alice.wait(at(1000)), Duration::ZERO);
        assert!(alice.take(at(1000)).is_ok());
    }
    assert_eq!(alice.take(at(1000)).err(), Some(WRONG_ANSWER_WAIT));
    assert_eq!(alice.wait(at(1029)), Duration::from_secs(1));
    assert!(alice.take(at(1030)).is_ok());
    assert_eq!(alice.take(at(1030)).err(), Some(WRONG_ANSWER_WAIT));
    // A pause makes good for at most the free ones.
    assert_eq!(exhaust(&alice, at(1_000_000)), WRONG_ANSWERS_FREE);
}

#[test]
fn right_answers_cost_nothing() {
    let (throttle, mask) = (throttle(4), MaskKey::generate(&mut rng(1)));
    let alice = throttle.of(&name(ALICE), None, &mask);
    for _ in 0..100 {
        alice.take(at(0)).unwrap().give_back();
    }
    assert_eq!(exhaust(&alice, at(0)), WRONG_ANSWERS_FREE);
}

#[test]
fn what_recovered_is_not_given_back_to_others() {
    let (throttle, mask) = (throttle(2), MaskKey::generate(&mut rng(1)));
    let (alice, bob) = (throttle.of(&name(ALICE), None, &mask), throttle.of(&name("bob"), None, &mask));
    let late = alice.take(at(0)).ok().unwrap();
    assert_eq!(exhaust(&bob, at(100)), WRONG_ANSWERS_FREE);
    late.give_back();
    assert!(bob.take(at(100)).is_err());
}

#[test]
fn the_end_of_time_is_no_trap() {
    let (throttle, mask) = (throttle(4), MaskKey::generate(&mut rng(1)));
    let alice = throttle.of(&name(ALICE), None, &mask);
    let end = Instant::from_millis(u64::MAX);
    for _ in 0..20 {
        let _ = alice.take(end);
    }
    assert!(alice.wait(end).is_zero());
}

#[test]
fn users_and_their_computers_have_their_own() {
    let (throttle, mask) = (throttle(4096), MaskKey::generate(&mut rng(1)));
    let (alice, bob) = (name(ALICE), name("bob"));
    exhaust(&throttle.of(&alice, None, &mask), at(0));
    assert!(throttle.of(&alice, None, &mask).take(at(1)).is_err());
    assert!(throttle.of(&alice, Some(&device()), &mask).take(at(1)).is_ok());
    assert!(throttle.of(&bob, None, &mask).take(at(1)).is_ok());
}

#[test]
fn without_a_table_all_share_one() {
    let mask = MaskKey::generate(&mut rng(1));
    for len in [0, 1] {
        let throttle = throttle(len);
        assert_eq!(exhaust(&throttle.of(&name(ALICE), None, &mask), at(0)), WRONG_ANSWERS_FREE);
        assert!(throttle.of(&name("bob"), None, &mask).take(at(0)).is_err());
    }
}

#[test]
fn strangers_who_use_up_every_name_leave_the_users_computers_alone() {
    let mask = MaskKey::generate(&mut rng(2));
    for len in [2, 3, 16] {
        let throttle = throttle(len);
        // Of so small a table every allowance that strangers have is hit.
        for number in 0..400 {
            exhaust(&throttle.of(&name(&std::format!("user-{number}")), None, &mask), at(0));
        }
        let alice = name(ALICE);
        assert!(throttle.of(&alice, None, &mask).take(at(1)).is_err(), "{len}");
        assert!(throttle.of(&alice, Some(&device()), &mask).take(at(1)).is_ok(), "{len}");
    }
}

/// As many accounts, for each allowance, as one core can keep in debt of the table that the host has.
#[test]
fn whoever_signs_up_often_does_not_hold_up_known_computers() {
    let (throttle, mask) = (throttle(2 * 4096), MaskKey::generate(&mut rng(3)));
    let mut user = 0;
    let mut exhaust_users = |accounts| {
        (0..accounts).for_each(|_| {
            user += 1;
            exhaust(&throttle.of(&name(&std::format!("mallory-{user}")), Some(&device()), &mask), at(0));
        });
    };
    let held_up = || {
        let owners = (0..2000).map(|number| name(&std::format!("honest-{number}")));
        owners.filter(|owner| !throttle.of(owner, Some(&device()), &mask).wait(at(1)).is_zero()).count()
    };
    exhaust_users(4096 / 3);
    // The eighth power of 1/3 is 1 of 6561.
    assert!(held_up() < 5, "{}", held_up());
    exhaust_users(4096 / 3);
    // At 2/3, the eighth power of that is 4 of 100.
    assert!(held_up() < 2000 / 15, "{}", held_up());
}

#[test]
fn others_debts_do_not_replace_ones_own() {
    let (throttle, mask) = (throttle(2 * 64), MaskKey::generate(&mut rng(4)));
    let thief = throttle.of(&name(ALICE), Some(&device()), &mask);
    assert_eq!(exhaust(&thief, at(0)), WRONG_ANSWERS_FREE);
    for number in 0..1000 {
        exhaust(&throttle.of(&name(&std::format!("helper-{number}")), Some(&device()), &mask), at(0));
    }
    assert_eq!(thief.take(at(0)).err(), Some(WRONG_ANSWER_WAIT));
    // With right answers neither.
    for number in 0..1000 {
        if let Ok(taken) = throttle.of(&name(&std::format!("helper-{number}")), Some(&device()), &mask).take(at(1)) {
            taken.give_back();
        }
    }
    assert_eq!(thief.wait(at(1)), Duration::from_secs(29));
}

/// Elsewhere a throttle cannot be shared between threads: there is no word to share, and this does not compile.
#[cfg(target_has_atomic = "64")]
#[test]
fn many_at_once_gain_nothing() {
    let (throttle, mask) = (throttle(2 * 64), MaskKey::generate(&mut rng(5)));
    for second in (0..100).map(|round| round * 1000) {
        let answered = std::thread::scope(|scope| {
            let guess = || exhaust(&throttle.of(&name(ALICE), None, &mask), at(second));
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(guess)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u32>()
        });
        assert_eq!(answered, WRONG_ANSWERS_FREE);
    }
}
