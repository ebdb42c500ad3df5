//! `bulbil keygen`.

use std::path::{Path, PathBuf};

use super::{Failure, print};
use crate::{
    cli::KeygenArgs,
    config::Config,
    identity,
    state::{self, Item, Problem, StateDir, StateError},
};

pub(super) fn run(args: &KeygenArgs) -> Result<(), Failure> {
    if let Some(file) = &args.place.out {
        let key = identity::generate();
        state::write_private(file, &key, args.force).map_err(with_advice)?;
        return show(file, &key);
    }
    let dir = state_dir(args)?;
    let path = dir.join(Item::Identity.name());
    if args.show {
        let key = state::peek(&dir, Item::Identity)?;
        let key = key.ok_or_else(|| {
            Failure::Other(format!("there is no identity in {0}; run: bulbil keygen --state '{0}'", dir.display()))
        })?;
        return show(&path, &key);
    }
    let state = StateDir::open(&dir)?;
    let key = identity::generate();
    match args.force {
        true => state.replace(Item::Identity, &key),
        false => state.create(Item::Identity, &key),
    }
    .map_err(with_advice)?;
    show(&path, &key)
}

fn state_dir(args: &KeygenArgs) -> Result<PathBuf, Failure> {
    match (&args.place.state, &args.place.config) {
        (Some(dir), _) => Ok(dir.clone()),
        (None, Some(file)) => Ok(Config::load(file)?.state),
        (None, None) => Err(Failure::Other("name a state directory, a configuration or a file".into())),
    }
}

fn with_advice(error: StateError) -> Failure {
    match error.problem {
        Problem::Exists => {
            Failure::Other(format!("{error}; --force replaces it, and then the node is another one to everybody"))
        }
        _ => Failure::State(error),
    }
}

fn show(path: &Path, key: &[u8]) -> Result<(), Failure> {
    let fingerprint = identity::fingerprint(key).map_err(|_| {
        Failure::Other(format!("{} holds no RSA-2048 key; restore it from a backup, or make a new one", path.display()))
    })?;
    print(&format!("{fingerprint}\n"))
}
