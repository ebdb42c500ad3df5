//! What the node sends: each cell has to be one that it may send now, and when it has nothing more to send nothing may be owed.

use bulbil_core::circuit::LinkId;
use bulbil_core::wire::cell::{CELL_LEN, Cell};

use super::{End, Model, PARTS, Phase, Progress};

impl Model {
    pub(in super::super) fn sent(&mut self, link: LinkId, mut bytes: [u8; CELL_LEN]) {
        let line = self.lines.get_mut(&link).expect("a cell on a link that is gone");
        let outward = line.outward;
        let cell = Cell::parse(&mut bytes).expect("the node's cells are well formed");
        if outward && !line.hello_sent {
            line.hello_sent = true;
            return assert!(matches!(cell, Cell::Hello(_)), "HELLO comes first");
        }
        match cell {
            Cell::Hello(_) => panic!("HELLO comes once, from the connector"),
            Cell::Padding => {}
            Cell::Open(id, _) => {
                let at = self.at(link, id.value()).expect("an onion without a circuit");
                let first = self.leaving(link).expect("no onion leaves");
                assert_eq!(self.circuits[at].onion, Some(first), "an onion before its turn");
                let onion = self.onion(first).expect("it leaves");
                let Progress::Leaving(parts) = &mut onion.progress else { panic!("it leaves") };
                *parts += 1;
                if *parts == PARTS {
                    self.free_onion(at);
                }
            }
            Cell::Relay(id, _) => {
                let at = self.at(link, id.value()).expect("a relay cell without a circuit");
                let circuit = &mut self.circuits[at];
                assert!(!outward || circuit.onion_has_left(), "a relay cell before the onion");
                let flow = circuit.leaving(outward);
                assert!(flow.waiting.pop_front().is_some(), "a relay cell that nobody has sent");
                flow.credit = flow.credit.checked_sub(1).expect("a relay cell without credit");
                if circuit.ending.is_none() {
                    circuit.leaving(outward).due += 1;
                }
            }
            Cell::Credit(entries) => {
                for (id, cells) in entries {
                    let at = self.at(link, id.value()).expect("credit without a circuit");
                    let circuit = &mut self.circuits[at];
                    assert!(circuit.ending.is_none(), "credit for a circuit that ends");
                    let (flow, cells) = (circuit.entering(outward), usize::from(cells.get()));
                    let due = flow.due.checked_sub(cells).expect("credit for room that is not free");
                    (flow.promised, flow.due) = (flow.promised + cells, due);
                }
            }
            Cell::Close(id, reason) => {
                let Some(at) = self.at(link, id.value()) else {
                    let line = self.lines.get_mut(&link).expect("it was there");
                    return assert_eq!(line.refusals.pop_front(), Some((id.value(), reason)), "whom the node refuses");
                };
                let circuit = &mut self.circuits[at];
                assert_eq!(circuit.ending, Some(reason), "CLOSE");
                assert!(circuit.leaving(outward).waiting.is_empty(), "CLOSE before what waits");
                assert!(!outward || circuit.onion_has_left(), "CLOSE before the onion");
                self.detach(at, outward);
            }
        }
        self.sweep();
    }

    /// The onion that leaves next on a link.
    fn leaving(&self, link: LinkId) -> Option<u64> {
        let here = |number| {
            let of = self.circuits.iter().find(|circuit| circuit.onion == Some(number));
            of.is_some_and(|circuit| matches!(circuit.outward, End::Link(on, _) if on == link))
        };
        let leaving = |progress| matches!(progress, Progress::Leaving(_));
        self.onions.iter().find(|onion| leaving(onion.progress) && here(onion.number)).map(|onion| onion.number)
    }

    /// The node says that it has nothing to send on a link that is up.
    pub(in super::super) fn silent(&mut self, link: LinkId) {
        let Some(line) = self.lines.get(&link) else { return };
        if line.phase == Phase::Closing {
            return;
        }
        let outward = line.outward;
        assert!(line.refusals.is_empty(), "refusals wait");
        assert_eq!(self.leaving(link), None, "an onion waits");
        for circuit in self.circuits.iter_mut().filter(|circuit| circuit.is_at(link)) {
            let may_send = !outward || circuit.onion_has_left();
            let leaving = circuit.leaving(outward);
            let (empty, credit) = (leaving.waiting.is_empty(), leaving.credit);
            assert!(!may_send || empty || credit == 0, "cells wait, and there is credit: {circuit:#?}");
            assert!(!may_send || !empty || circuit.ending.is_none(), "CLOSE is owed: {circuit:#?}");
            let entering = circuit.entering(outward);
            // Section 10: a quarter of the window, or the sender has nothing left. As long as cells wait here, more room is to come.
            let stuck = entering.promised == 0 && entering.waiting.is_empty();
            let owed = entering.due >= entering.room() / 4 || stuck;
            assert!(!owed || entering.due == 0, "room is free, and the sender is not told: {circuit:#?}");
            assert!(!stuck || circuit.ending.is_some(), "nothing waits and no room is granted: {circuit:#?}");
        }
    }
}
