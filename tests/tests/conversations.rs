//! Conversations through whole networks: what goes in at one end comes out at the other.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use bulbil_core::wire::EndReason;
use bulbil_tests::sim::{Behaviour, Heard, Network, Spec, Wish, run};

/// A client, three relays and an exit.
const FIVE: [Spec; 5] = [Spec::CLIENT, Spec::RELAY, Spec::RELAY, Spec::RELAY, Spec::EXIT];

fn over(network: &Network<'_, '_>, talk: usize) -> bool {
    network.talk(talk).is_over()
}

#[test]
fn a_request_travels_through_four_nodes_and_its_answer_comes_back() {
    run(1, &FIVE, |network| {
        let talk = network.open(0, &[1, 2, 3, 4], Wish::new(Behaviour::Echo, 20_000)).unwrap();
        network.run_until(100_000, |network| over(network, talk));
        let talk = network.talk(talk);
        assert_eq!(talk.end(), Some((EndReason::Done, 3)));
        assert_eq!((talk.app().heard(), talk.app().heard_end()), (20_000, Some(Heard::End)));
        network.settle();
    });
}
