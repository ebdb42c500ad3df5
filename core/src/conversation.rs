//! What the two ends of a conversation, client and exit, have in common.

/// Which directions of a conversation are finished, seen from one end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Halves {
    /// Our side has nothing more to say, and has said so (FIN or END).
    pub finish_sent: bool,
    /// The other end has said that nothing more comes.
    pub finish_received: bool,
    /// And our side has been told, after everything that came before.
    pub finish_delivered: bool,
    /// Bytes of the first waiting cell that our side has taken already.
    pub taken: u16,
}
