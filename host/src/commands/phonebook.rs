//! `bulbil phonebook`: asks the node that runs with the state directory; if none does, it is its own phonebook's owner as long as the
//! directory is locked.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::Path;

use bulbil_core::phonebook::Grouping;

use super::status::{print_json, unasked};
use super::{Failure, print, write_out};
use crate::cli::{ExportArgs, ImportArgs, ListArgs, NodePlace, PhonebookCommand, ShowArgs};
use crate::control::book::{NodeDetails, NodeLine};
use crate::control::client::Client;
use crate::control::file::{FILE_MAX, FileError};
use crate::control::import::{self, Imported, Unjudged};
use crate::control::{Ask, Reply, details, lines};
use crate::engine::shell::unix_time;
use crate::identity;
use crate::node::control::{self, Book};
use crate::node::stored::{self, Tables};
use crate::state::{self, Item, Problem, StateDir, StateError};

pub(super) fn run(command: &PhonebookCommand) -> Result<(), Failure> {
    match command {
        PhonebookCommand::List(args) => list(args),
        PhonebookCommand::Show(args) => show(args),
        PhonebookCommand::Export(args) => export(args),
        PhonebookCommand::Import(args) => import(args),
    }
}

/// Who answers: a node, or a directory without one.
enum Owner {
    Node(Client),
    Stored(StateDir, Grouping),
}

impl Owner {
    fn of(place: &NodePlace) -> Result<Self, Failure> {
        let (dir, grouping) = place.resolve()?;
        if let Some(client) = Client::connect(&dir)? {
            return Ok(Self::Node(client));
        }
        if let Ok(false) = dir.try_exists() {
            // Opening it would make it.
            return Err(Failure::Other(format!("there is no state directory {}; is the path right?", dir.display())));
        }
        match StateDir::open(&dir) {
            Ok(state) => Ok(Self::Stored(state, grouping)),
            Err(StateError { problem: Problem::InUse, .. }) => Err(Failure::Other(format!(
                "a node runs with {} and does not answer; if it has just been started or is stopping, try again",
                dir.display()
            ))),
            Err(error) => Err(error.into()),
        }
    }
}

/// Lets `use_it` use the phonebook in `state`, and keeps what that says is to be kept.
fn with_stored<T>(
    state: &StateDir,
    grouping: Grouping,
    use_it: impl FnOnce(&mut Book<'_>) -> (T, bool),
) -> Result<T, Failure> {
    let own = match state.read(Item::Identity)? {
        Some(der) => Some(identity::fingerprint(&der).map_err(|_| {
            let path = state.item_path(Item::Identity);
            Failure::Other(format!("{} holds no RSA-2048 key; restore it from a backup", path.display()))
        })?),
        None => None,
    };
    let mut tables = Tables::new();
    let (mut book, anchors) = stored::read(&mut tables, state, own, grouping, unix_time())?;
    let (answer, changed) = use_it(&mut book);
    if changed {
        stored::write(state, &book, &anchors)?;
    }
    Ok(answer)
}

fn list(args: &ListArgs) -> Result<(), Failure> {
    let nodes: Vec<NodeLine> = match Owner::of(&args.place)? {
        Owner::Node(client) => match client.ask(Ask::List, &[])?.0 {
            Reply::List(nodes) => nodes,
            _ => return Err(unasked()),
        },
        Owner::Stored(state, grouping) => with_stored(&state, grouping, |book| (control::list(book), false))?,
    };
    match args.json {
        true => print_json(&nodes),
        false => print(&lines(&nodes, unix_time().0)),
    }
}

fn show(args: &ShowArgs) -> Result<(), Failure> {
    let reply = match Owner::of(&args.place)? {
        Owner::Node(client) => client.ask(Ask::Show { prefix: args.prefix.clone() }, &[])?.0,
        Owner::Stored(state, grouping) => {
            with_stored(&state, grouping, |book| (control::find(book, &args.prefix), false))?.reply(&args.prefix)
        }
    };
    let node: Box<NodeDetails> = match reply {
        Reply::Show(node) => node,
        Reply::Error { text, .. } => return Err(Failure::Other(text)),
        _ => return Err(unasked()),
    };
    match args.json {
        true => print_json(&node),
        false => print(&details(&node, unix_time().0)),
    }
}

fn export(args: &ExportArgs) -> Result<(), Failure> {
    let (count, text) = match Owner::of(&args.place)? {
        Owner::Node(client) => match client.ask(Ask::Export, &[])? {
            (Reply::Export { count, .. }, text) => (count, text),
            _ => return Err(unasked()),
        },
        Owner::Stored(state, grouping) => {
            let cards = with_stored(&state, grouping, |book| (control::export(book, unix_time()), false))?;
            (cards.len() as u64, import::export(cards.iter().map(AsRef::as_ref)).into_bytes())
        }
    };
    if args.file == Path::new("-") {
        return write_out(&text);
    }
    // A pipe or a terminal is written to; a file appears as a whole or not at all.
    match args.file.metadata() {
        Ok(metadata) if !metadata.is_file() => {
            let written = File::options().write(true).open(&args.file).and_then(|mut file| file.write_all(&text));
            written.map_err(Failure::system(format!("write {}", args.file.display())))?;
        }
        _ => state::write_private(&args.file, &text, true)?,
    }
    print(&format!("{count} descriptors\n"))
}

fn import(args: &ImportArgs) -> Result<(), Failure> {
    let text = read_file(&args.file)?;
    let imported = match Owner::of(&args.place)? {
        Owner::Node(client) => match client.ask(Ask::Import { bytes: text.len() as u64 }, &text)?.0 {
            Reply::Import(imported) => imported,
            _ => return Err(unasked()),
        },
        Owner::Stored(state, grouping) => {
            let mut unjudged = Unjudged::default();
            let read = unjudged.feed(&text).and_then(|()| unjudged.finish());
            let descriptors = read.map_err(|error| damaged(&args.file, error))?;
            with_stored(&state, grouping, |book| {
                let (good, mut counts) = import::judge(&descriptors, unix_time());
                let taken = control::import(book, good, unix_time());
                counts.taken.add(&taken);
                (counts, taken.added + taken.updated + taken.disputed > 0)
            })?
        }
    };
    match args.json {
        true => print_json(&imported)?,
        false => print(&summary(&imported))?,
    }
    match imported.is_useless() {
        true => Err(Failure::Other("none of the file's descriptors is of any use".into())),
        false => Ok(()),
    }
}

fn damaged(path: &Path, error: FileError) -> Failure {
    Failure::Other(format!("{}: {error}", path.display()))
}

/// The whole file: a node is given its length before the first byte, and is not kept waiting for a slow pipe.
fn read_file(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = Failure::system(format!("read {}", path.display()));
    let mut text = Vec::new();
    let read = match path == Path::new("-") {
        true => io::stdin().lock().take(FILE_MAX + 1).read_to_end(&mut text),
        false => File::open(path).and_then(|file| file.take(FILE_MAX + 1).read_to_end(&mut text)),
    };
    read.map_err(failed)?;
    match text.len() as u64 {
        0..=FILE_MAX => Ok(text),
        _ => Err(damaged(path, FileError::TooLarge)),
    }
}

/// One line with the counts that are not zero.
fn summary(imported: &Imported) -> String {
    let mut text = format!("{} descriptors", imported.read);
    let counts = imported.named();
    let mut separator = ": ";
    for (count, name) in counts.into_iter().filter(|(count, _)| *count > 0) {
        text.push_str(&format!("{separator}{count} {name}"));
        separator = ", ";
    }
    text.push('\n');
    text
}
