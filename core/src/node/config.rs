//! What the owner of a node decides: its roles, its limits and its patience.

use core::time::Duration;

use crate::circuit::flow::{Growth, WINDOW_MIN};
use crate::wire::NodeId;
use crate::wire::handshake::LinkLimits;

/// Roles and limits of a node.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// Passes circuits on.
    pub relay: bool,
    /// Ends circuits and connects to targets.
    pub exit: bool,
    /// Most cells in one record that this node takes, and the room that every circuit has from the beginning, in each direction.
    pub limits: LinkLimits,
    /// Room that one direction of one circuit may grow to.
    pub window_max: u16,
    /// Circuits that a connector may have open on one link.
    pub circuits_per_link: u32,
    /// Onions of one link that may be here at once, arriving or being opened.
    pub onions_per_link: u16,
    /// Links of others whose handshake has not ended.
    pub half_open_links: u16,
    /// How long things may take.
    pub patience: Patience,
}

/// How long this node waits for others. Implementation constants: nothing in the protocol depends on them being equal.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// From the first byte of a link to the end of its handshake.
    pub handshake: Duration,
    /// From the first cell of an onion to the circuit that it opens, the next link included.
    pub opening: Duration,
    /// From a circuit's last cell, either way, to its end.
    pub idle: Duration,
    /// For a closing circuit to deliver what waits.
    pub draining: Duration,
    /// From a link's last circuit to its end.
    pub link_idle: Duration,
}

impl Patience {
    /// What nodes use unless told otherwise.
    pub const DEFAULT: Self = Self {
        handshake: Duration::from_secs(10),
        opening: Duration::from_secs(30),
        idle: Duration::from_secs(600),
        draining: Duration::from_secs(60),
        link_idle: Duration::from_secs(300),
    };
}

impl Config {
    pub(crate) fn growth(&self) -> Growth {
        let credit = self.limits.credit.value();
        Growth { min: credit, max: self.window_max.max(credit) }
    }

    /// Checks what types cannot say.
    ///
    /// # Errors
    /// The sentence says what to change.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.limits.credit.value() < WINDOW_MIN {
            return Err("the initial credit must be at least 8 cells: a conversation's control messages need them");
        }
        if self.circuits_per_link == 0 || self.onions_per_link == 0 || self.half_open_links == 0 {
            return Err("circuits and onions of a link and half-open links must be allowed at least one each");
        }
        Ok(())
    }
}
