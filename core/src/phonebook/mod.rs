//! Phonebook.
