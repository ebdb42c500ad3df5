//! `bulbil`
