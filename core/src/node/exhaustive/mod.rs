//! The credit protocol in every order: client, relay and exit with windows of one and two cells, and every way in which what they do,
//! what their owners do and what the wires do can interleave. `PROTOCOL.md` sections 7, 9 and 10.
//!
//! The nodes are real ones ([`super::Node`]); nothing of the protocol is modelled. `actor` says how one node is driven, `network` how three
//! of them are.
//! In every state of the network:
//!
//! - a node's books agree with each other ([`super::Node::audit`]), it holds no more cells than were granted and than its pool has, and finds
//!   no fault with its neighbours;
//! - between two nodes, what the sender may send and what is on its way is what the receiver has room for: no grant is lost, none made twice;
//! - what an application or a target hears is what was said, in order, and its end comes after all of it.
//!
//! And of all states together:
//!
//! - nothing goes on for ever: no state can be come back to;
//! - where nothing can happen any more, all is done: both sides have heard everything and that it is over, no circuit, no cell and no
//!   reserved room is left anywhere. If a side has left or was reset, the other one is told so; what was said before is delivered unless
//!   the application has cancelled. If a link was cut, whoever is left is told that it is over.
//!
//! So from every state every way, and not only some, leads to completion. Time stands still meanwhile, so that no deadline helps out, but for
//! one thing: when the application cancels while cells wait for credit in both directions of a link, the nodes at its ends may both be
//! ending the circuit, and each waits for credit from the other, which takes nothing any more. Everybody has been told by then; what is
//! held until the deadline of closing circuits (section 13) is their room.
//!
//! What is explored under `cargo test` takes a few seconds. For more cells, wider windows and every upset:
//!
//! ```text
//! cargo test --release -p bulbil-core --lib exhaustive -- --include-ignored --nocapture
//! ```

mod actor;
mod network;

use std::eprintln;

use actor::{Fault, Place};
use network::{Network, Tally, Wrong};

use super::Violation;
use crate::crypto::onion::ONION_CELLS;

/// What a conversation keeps free for its control messages: with so many more it has a window of one or two cells for what is said.
const CONTROL_ROOM: u16 = super::talk::CONTROL_ROOM;

/// What may go wrong, once, at any moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upset {
    Nothing,
    /// The link from this node to the next one is cut.
    Cut(Place),
    /// The application cancels.
    Cancel,
    /// The application leaves, and what it has said is to be delivered.
    Leave,
    /// The target resets.
    Reset,
    /// Against the rules, to see it found: a grant is lost, a grant is made twice, an owner does not hear that a conversation calls.
    LoseCredit,
    DoubleCredit,
    Oversleep,
}

/// One network to be explored.
#[derive(Debug, Clone, Copy)]
struct Case {
    /// Cells that client, relay and exit take of a circuit in each direction.
    windows: [u16; 3],
    /// Cells that the relay's windows may grow to, and those that its pool has for that.
    window_max: u16,
    spare: usize,
    /// Cells that the client says, and the target.
    said: [u8; 2],
    /// The exit ends the conversation when the target has finished.
    once: bool,
    /// Whether the opening is explored too, or only what comes after it.
    opening: bool,
    /// Cells of an onion that leave in its first record; the others leave in a second one.
    first_cells: usize,
    upset: Upset,
    /// Whether what one node promises is compared with what the other one knows, or only what follows from it is looked at.
    compare_books: bool,
}

impl Case {
    const PLAIN: Self = Self {
        windows: [1; 3],
        window_max: 0,
        spare: 0,
        said: [1; 2],
        once: false,
        opening: false,
        first_cells: ONION_CELLS,
        upset: Upset::Nothing,
        compare_books: true,
    };

    const fn said_by(&self, place: Place) -> u8 {
        match place {
            Place::Client => self.said[0],
            Place::Relay => 0,
            Place::Exit => self.said[1],
        }
    }

    const fn said_to(&self, place: Place) -> u8 {
        match place {
            Place::Client => self.said[1],
            Place::Relay => 0,
            Place::Exit => self.said[0],
        }
    }
}

const UPSETS: [Upset; 5] =
    [Upset::Cut(Place::Client), Upset::Cut(Place::Relay), Upset::Cancel, Upset::Leave, Upset::Reset];

/// Explores all of `cases`, which must find nothing wrong.
fn explore(name: &str, cases: impl IntoIterator<Item = Case>) {
    let (mut count, mut sum) = (0, Tally::default());
    for case in cases {
        let tally = Network::explore(&case).unwrap_or_else(|failure| panic!("{case:?}: {failure:#?}"));
        assert!(tally.ends > 0 && tally.runs >= 1.0, "{case:?}: {tally:?}");
        assert!(tally.stalls == 0 || case.upset == Upset::Cancel, "{case:?}: {tally:?}");
        count += 1;
        sum.states += tally.states;
        sum.steps += tally.steps;
        sum.node_steps += tally.node_steps;
        sum.ends += tally.ends;
        sum.stalls += tally.stalls;
        sum.runs += tally.runs;
    }
    let Tally { states, steps, node_steps, runs, ends, stalls } = sum;
    eprintln!(
        "{name}: {count} networks, {states} states, {steps} steps ({node_steps} of single nodes), {runs:.1e} runs to {ends} ends, \
         {stalls} of them by a deadline"
    );
}

/// Every number of cells up to `most`, each way.
fn all_said(most: u8) -> impl Iterator<Item = [u8; 2]> + Clone {
    (0..=most).flat_map(move |forward| (0..=most).map(move |backward| [forward, backward]))
}

/// One and two cells, at every node.
fn all_windows() -> impl Iterator<Item = [u16; 3]> + Clone {
    (0..8u16).map(|bits| [1 + bits % 2, 1 + bits / 2 % 2, 1 + bits / 4])
}

#[test]
fn up_to_four_cells_each_way_through_windows_of_one() {
    explore("windows of one", all_said(4).map(|said| Case { said, ..Case::PLAIN }));
}

#[test]
fn through_windows_of_one_and_two() {
    let said = [[1, 1], [2, 0], [0, 2]];
    let cases = all_windows().flat_map(|windows| said.map(|said| Case { windows, said, ..Case::PLAIN }));
    explore("windows of one and two", cases);
}

#[test]
fn through_windows_that_grow_and_shrink() {
    let spare = [1, 2, 4];
    let cases = spare.map(|spare| Case { window_max: 2, spare, said: [2, 1], ..Case::PLAIN });
    explore("windows that grow", cases);
}

#[test]
fn while_the_circuit_opens() {
    let cases = [[1; 3], [1, 2, 1]]
        .into_iter()
        .flat_map(|windows| all_said(1).map(move |said| Case { opening: true, windows, said, ..Case::PLAIN }));
    explore("while it opens", cases);
}

#[test]
fn when_a_link_is_cut_or_a_side_leaves() {
    let said = [[0, 0], [1, 1], [2, 0], [0, 2]];
    explore("upset", UPSETS.into_iter().flat_map(|upset| said.map(|said| Case { said, upset, ..Case::PLAIN })));
}

#[test]
fn when_a_link_is_cut_or_a_side_leaves_while_the_circuit_opens() {
    let said = [[0, 0], [1, 0]];
    let cases =
        UPSETS.into_iter().flat_map(|upset| said.map(|said| Case { opening: true, said, upset, ..Case::PLAIN }));
    explore("upset while it opens", cases);
}

#[test]
fn when_onions_come_in_two_parts() {
    let upsets = UPSETS.into_iter().chain([Upset::Nothing]);
    let cases = upsets.map(|upset| Case { opening: true, first_cells: 4, said: [1, 0], upset, ..Case::PLAIN });
    explore("onions in two parts", cases);
}

#[test]
fn when_the_answer_is_the_end() {
    explore("once", all_said(2).map(|said| Case { once: true, said, ..Case::PLAIN }));
}

#[test]
#[ignore = "takes minutes, in release mode"]
fn up_to_three_cells_each_way_through_windows_of_one_and_two() {
    let cases = all_windows().flat_map(|windows| all_said(3).map(move |said| Case { windows, said, ..Case::PLAIN }));
    explore("all windows", cases);
}

#[test]
#[ignore = "takes minutes, in release mode"]
fn when_a_link_is_cut_or_a_side_leaves_with_up_to_four_cells_each_way() {
    let cases = UPSETS.into_iter().flat_map(|upset| {
        let one = all_said(4).map(move |said| Case { said, upset, ..Case::PLAIN });
        one.chain(all_said(2).map(move |said| Case { windows: [2; 3], said, upset, ..Case::PLAIN }))
    });
    explore("all upsets", cases);
}

#[test]
#[ignore = "takes minutes, in release mode"]
fn while_the_circuit_opens_with_up_to_two_cells_each_way() {
    let upsets = UPSETS.into_iter().chain([Upset::Nothing]);
    let cases = upsets.flat_map(|upset| {
        all_said(2).map(move |said| Case { opening: true, windows: [1, 2, 1], said, upset, ..Case::PLAIN })
    });
    explore("all openings", cases);
}

/// What one fault in the protocol leads to.
fn wrong(case: Case) -> Wrong {
    Network::explore(&case).expect_err("the fault is found").wrong
}

#[test]
fn a_lost_grant_is_found() {
    let case = Case { said: [2, 0], upset: Upset::LoseCredit, ..Case::PLAIN };
    assert!(matches!(wrong(case), Wrong::Books(_)), "as soon as it is lost");
    assert!(matches!(wrong(Case { compare_books: false, ..case }), Wrong::Stuck(_)), "because cells wait for it");
}

#[test]
fn a_grant_made_twice_is_found() {
    let case = Case { said: [2, 0], upset: Upset::DoubleCredit, ..Case::PLAIN };
    assert!(matches!(wrong(case), Wrong::Books(_)), "as soon as it is made");
    let overrun = wrong(Case { compare_books: false, ..case });
    assert!(matches!(overrun, Wrong::Node(_, Fault::Violation(Violation::Overrun))), "{overrun:?}");
}

#[test]
fn a_call_that_nobody_hears_is_found() {
    let stuck = wrong(Case { said: [1, 0], upset: Upset::Oversleep, ..Case::PLAIN });
    assert!(matches!(stuck, Wrong::Stuck(_)), "{stuck:?}");
}
