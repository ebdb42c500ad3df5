//! `bulbil keygen`.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use bulbil_core::{link::LinkSecret, wire::NodeId};

use super::{Failure, print};
use crate::{
    cli::KeygenArgs,
    config::Config,
    identity,
    random::SYSTEM,
    state::{self, Item, Problem, StateDir, StateError},
};
use zeroize::Zeroizing;

/// A device's RSA-2048 identity, PKCS#8 DER.
const DEVICE_IDENTITY: &str = "identity.der";
/// A device's X25519 link key, 32 bytes.
const DEVICE_LINK_KEY: &str = "link.key";

pub(super) fn run(args: &KeygenArgs) -> Result<(), Failure> {
    if let Some(file) = &args.place.out {
        let key = identity::generate();
        state::write_private(file, &key, args.force).map_err(with_advice)?;
        return show(file, &key);
    }
    if let Some(dir) = &args.place.for_device {
        let key = provision(dir, args.force)?;
        let fingerprint = fingerprint(&dir.join(DEVICE_IDENTITY), &key)?;
        print(&format!("{fingerprint}\n"))?;
        return advise(dir, fingerprint);
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

/// Writes what a constrained device cannot make itself: generating an RSA key there takes minutes and more stack than it has. The bytes
/// are bare, without a first line as in the state directory, so that firmware includes them as they are. Answers the identity.
fn provision(dir: &Path, force: bool) -> Result<Zeroizing<Vec<u8>>, Failure> {
    state::private_dir(dir)?;
    let (identity_path, link_path) = (dir.join(DEVICE_IDENTITY), dir.join(DEVICE_LINK_KEY));
    if !force {
        // Both before either is written: half of one device and half of another is no device.
        for path in [&identity_path, &link_path] {
            if path.symlink_metadata().is_ok() {
                return Err(with_advice(StateError { path: path.clone(), problem: Problem::Exists }));
            }
        }
    }
    let identity = identity::generate();
    let link = LinkSecret::generate(&mut SYSTEM.clone());
    state::write_private(&link_path, link.to_bytes().as_ref(), force).map_err(with_advice)?;
    state::write_private(&identity_path, &identity, force).map_err(with_advice)?;
    Ok(identity)
}

/// What to do with a device's keys; on standard error, so that standard output is the fingerprint and nothing else.
fn advise(dir: &Path, fingerprint: NodeId) -> Result<(), Failure> {
    let (identity, link) = (dir.join(DEVICE_IDENTITY), dir.join(DEVICE_LINK_KEY));
    let (identity, link) = (identity.display(), link.display());
    let text = format!(
        "Flash {identity} and {link}, or name them in the device's configuration: identity = \"{identity}\", link_key = \"{link}\"\n\
         Pin the device elsewhere as ADDRESS:PORT#{fingerprint}\n"
    );
    match io::stderr().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::System("write the advice".into(), error))
        }
        _ => Ok(()),
    }
}

fn state_dir(args: &KeygenArgs) -> Result<PathBuf, Failure> {
    match (&args.place.state, &args.place.config) {
        (Some(dir), _) => Ok(dir.clone()),
        (None, Some(file)) => Ok(Config::load(file)?.state),
        (None, None) => Err(Failure::Other("name a state directory, a configuration, a file or a device".into())),
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
    print(&format!("{}\n", fingerprint(path, key)?))
}

fn fingerprint(path: &Path, key: &[u8]) -> Result<NodeId, Failure> {
    identity::fingerprint(key).map_err(|_| {
        Failure::Other(format!("{} holds no RSA-2048 key; restore it from a backup, or make a new one", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::scratch::Scratch;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & 0o7777
    }

    #[test]
    fn a_device_gets_bare_keys_that_nobody_else_may_read() {
        let scratch = Scratch::new("device");
        let dir = scratch.path().join("keys/device");
        let key = provision(&dir, false).unwrap();
        let (identity, link) = (dir.join("identity.der"), dir.join("link.key"));
        assert_eq!((mode(&dir), mode(&identity), mode(&link)), (0o700, 0o600, 0o600));
        let written = std::fs::read(&identity).unwrap();
        assert_eq!(written, *key);
        assert!(identity::fingerprint(&written).is_ok());
        let bytes: [u8; 32] = std::fs::read(&link).unwrap().try_into().unwrap();
        assert_ne!(bytes, [0; 32]);
        assert_eq!(*LinkSecret::from_bytes(bytes).to_bytes(), bytes);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2, "nothing else is left there");
    }

    #[test]
    fn a_device_is_replaced_only_by_force_and_as_a_whole() {
        let scratch = Scratch::new("device");
        let dir = scratch.path().join("device");
        provision(&dir, false).unwrap();
        let read = || [DEVICE_IDENTITY, DEVICE_LINK_KEY].map(|name| std::fs::read(dir.join(name)).unwrap());
        let before = read();
        for left in [DEVICE_IDENTITY, DEVICE_LINK_KEY] {
            let error = provision(&dir, false).unwrap_err();
            assert!(error.to_string().contains("--force replaces it"), "{error}");
            assert_eq!((error.code(), read()), (1, before.clone()));
            // One of the two is as good a reason.
            let other = if left == DEVICE_IDENTITY { DEVICE_LINK_KEY } else { DEVICE_IDENTITY };
            let aside = scratch.path().join("aside");
            std::fs::rename(dir.join(other), &aside).unwrap();
            assert!(provision(&dir, false).is_err());
            assert!(!dir.join(other).exists());
            std::fs::rename(&aside, dir.join(other)).unwrap();
        }
        provision(&dir, true).unwrap();
        let after = read();
        assert!(before.iter().zip(&after).all(|(before, after)| before != after));
    }

    #[test]
    fn a_device_directory_that_others_may_enter_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let scratch = Scratch::new("device");
        let dir = scratch.path().join("device");
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(provision(&dir, false).unwrap_err().to_string().contains("chmod go= "));
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
    }
}
