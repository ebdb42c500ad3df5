//! Relay messages.
/// A relay message.
pub enum Message {}
/// Why a conversation ended.
pub enum EndReason {}
