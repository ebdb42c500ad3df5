//! `bulbil auth`, but for its server.

use std::{
    io::{self, Read, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use bulbil_core::auth::client::Act;
use bulbil_core::auth::record::NOTE_MAX_LEN;
use bulbil_core::auth::{KdfParameters, PasswordKey, PublicKey, SessionNumber, Status, Username};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use zeroize::Zeroizing;

use super::{Failure, print, write_out};
use crate::auth::client::{Client, Said, TalkError};
use crate::auth::database::{self, DatabaseError};
use crate::auth::known_servers::{KnownServers, KnownServersError};
use crate::auth::password::{Password, PasswordError};
use crate::auth::route::Route;
use crate::auth::sessions::{Held, Sessions};
use crate::auth::{argon, place};
use crate::cli::{ActArgs, ActWhat, ConnectArgs, PasswordArgs, SignInArgs, SignUpArgs, UsersArgs};
use crate::config::Config;
use crate::node::{self, Node};
use crate::shutdown::INTERRUPTED;
use crate::state;

mod serve;

pub(super) use serve::run as serve;

impl From<TalkError> for Failure {
    fn from(error: TalkError) -> Self {
        Self::Other(error.to_string())
    }
}

impl From<KnownServersError> for Failure {
    fn from(error: KnownServersError) -> Self {
        Self::Other(error.to_string())
    }
}

impl From<PasswordError> for Failure {
    fn from(error: PasswordError) -> Self {
        Self::Other(error.to_string())
    }
}

impl From<DatabaseError> for Failure {
    fn from(error: DatabaseError) -> Self {
        Self::Other(error.to_string())
    }
}

/// The names and standing of a server's users.
pub(super) fn users(args: &UsersArgs) -> Result<(), Failure> {
    let path = place::users_path(&args.state);
    if !path.exists() {
        let dir = args.state.display();
        return Err(Failure::Other(format!(
            "there are no users in {dir}; name the directory that `bulbil auth serve --state` was given"
        )));
    }
    let mut lines = String::new();
    database::list(&path, |user| {
        let standing = if user.connected { "connected" } else { "disconnected" };
        let plural = if user.sessions == 1 { "" } else { "s" };
        lines.push_str(&format!("{} {standing} {} session{plural}\n", user.username, user.sessions));
    })?;
    print(&lines)
}

/// What a command has to do with a server.
struct Visit<'a> {
    args: &'a ConnectArgs,
    client: Client,
    sessions: Sessions,
    server: PublicKey,
    /// How it wants passwords hashed, if it has said so already.
    confirmed: Option<KdfParameters>,
    /// Started for the purpose.
    node: Option<Node>,
}

/// `bulbil auth sign-up`.
pub(super) async fn sign_up(args: &SignUpArgs, config: Option<Config>) -> Result<(), Failure> {
    let visit = Visit::begin(&args.connect, config).await?;
    let done = async {
        let parameters = match visit.confirmed {
            Some(parameters) => parameters,
            None => visit.talked(visit.client.confirm(&visit.server).await).await?,
        };
        let password = visit.password(&args.password, true).await?;
        let key = visit.key(password, parameters).await;
        let held = visit.hold().await?;
        // Stored, so that the key that the server will know is not lost with an answer that does not come.
        let mut session = held.load_or_new()?;
        let mut conversation = visit.talked(visit.client.reconnect(&visit.server, parameters).await).await?;
        match visit.talked(conversation.sign_up(&mut session, &key).await).await? {
            Said::Log(Status::SignedUp) => print("signed up; now: bulbil auth sign-in\n"),
            Said::Log(Status::NameTaken) => Err(Failure::Other(format!(
                "the name {} is taken there; sign in, if it is yours (perhaps an earlier sign-up was done whose answer was lost), or choose another one",
                visit.username().as_str()
            ))),
            said => Err(unexpected(&said)),
        }
    };
    let done = done.await;
    visit.end().await;
    done
}

/// `bulbil auth sign-in`.
pub(super) async fn sign_in(args: &SignInArgs, config: Option<Config>) -> Result<(), Failure> {
    let visit = Visit::begin(&args.connect, config).await?;
    let done = async {
        let held = visit.hold().await?;
        let mut session = held.load_or_new()?;
        let mut conversation = visit.talked(visit.client.connect(&visit.server).await).await?;
        let said = visit.talked(conversation.begin(&mut session).await).await?;
        held.store(&session)?;
        // Whoever has the session is not asked for the password.
        let (Said::Challenged, Some(parameters)) = (&said, conversation.parameters()) else {
            return tell_sign_in(&said);
        };
        // Other commands do not wait for somebody who types, nor does the server.
        drop((held, conversation));
        let password = visit.password(&args.password, false).await?;
        let key = visit.key(password, parameters).await;
        let held = visit.hold().await?;
        let mut session = held.load_or_new()?;
        let mut conversation = visit.talked(visit.client.reconnect(&visit.server, parameters).await).await?;
        let said = visit.talked(conversation.sign_in(&mut session, &key).await).await?;
        held.store(&session)?;
        tell_sign_in(&said)
    };
    let done = done.await;
    visit.end().await;
    done
}

fn tell_sign_in(said: &Said) -> Result<(), Failure> {
    match said {
        Said::Log(Status::SignedIn(SessionNumber(number))) => print(&format!("signed in, session {number}\n")),
        Said::Log(Status::AlreadySignedIn(SessionNumber(number))) => {
            print(&format!("already signed in on this computer, session {number}\n"))
        }
        Said::Log(Status::Refused) => Err(Failure::Other(
            "refused: the password is wrong, or there is no such user; check both and try again".into(),
        )),
        said => Err(unexpected(said)),
    }
}

/// `bulbil auth act`.
pub(super) async fn act(args: &ActArgs, config: Option<Config>) -> Result<(), Failure> {
    let note = match &args.what {
        ActWhat::Read => None,
        ActWhat::Write { note } if note == "-" => Some(read_note(io::stdin().lock())?),
        ActWhat::Write { note } => Some(Zeroizing::new(note.as_bytes().to_vec())),
    };
    if note.as_ref().is_some_and(|note| note.len() > NOTE_MAX_LEN) {
        return Err(Failure::Other(format!("a note has {NOTE_MAX_LEN} bytes at most; shorten it")));
    }
    let what = note.as_ref().map_or(Act::Read, |note| Act::Write(note));
    let visit = Visit::begin(&args.connect, config).await?;
    let done = async {
        let held = visit.hold().await?;
        let mut session = held.load()?.ok_or_else(no_session)?;
        let mut conversation = visit.talked(visit.client.connect(&visit.server).await).await?;
        let said = visit.talked(conversation.act(&mut session, what).await).await?;
        held.store(&session)?;
        match said {
            Said::Note(note) => write_out(&note),
            Said::Log(Status::NoteKept) => print("note kept\n"),
            Said::Log(Status::Refused) => Err(no_session()),
            said => Err(unexpected(&said)),
        }
    };
    let done = done.await;
    visit.end().await;
    done
}

fn read_note(input: impl Read) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut note = Zeroizing::new(Vec::with_capacity(NOTE_MAX_LEN + 1));
    let read = input.take(NOTE_MAX_LEN as u64 + 1).read_to_end(&mut note);
    read.map_err(Failure::system("read the note from standard input"))?;
    Ok(note)
}

/// `bulbil auth disconnect`.
pub(super) async fn disconnect(args: &ConnectArgs, config: Option<Config>) -> Result<(), Failure> {
    let visit = Visit::begin(args, config).await?;
    let done = async {
        let held = visit.hold().await?;
        let mut session = held.load()?.ok_or_else(no_session)?;
        let mut conversation = visit.talked(visit.client.connect(&visit.server).await).await?;
        let said = visit.talked(conversation.disconnect(&mut session).await).await?;
        held.store(&session)?;
        match said {
            Said::Log(Status::Disconnected) => print("disconnected\n"),
            Said::Log(Status::Refused) => Err(no_session()),
            said => Err(unexpected(&said)),
        }
    };
    let done = done.await;
    visit.end().await;
    done
}

fn no_session() -> Failure {
    Failure::Other(
        "refused: this computer does not have the user's session (never, no longer, or another computer has signed in since); run: bulbil auth sign-in".into(),
    )
}

fn unexpected(said: &Said) -> Failure {
    Failure::Other(match said {
        Said::Log(Status::RetryAfter(seconds)) => {
            format!("too many wrong answers; wait {seconds} s and try again")
        }
        Said::Log(Status::Unavailable) => {
            "the server could not read or store the account: what was asked may have been done or not, and asking again does no harm; try again later, or ask the server's operator whether it is full".into()
        }
        Said::Log(Status::NotUnderstood) => {
            "the server does not understand this client; is it of another version?".into()
        }
        Said::Log(status) => format!("the server answers something else: {status}"),
        Said::Challenged | Said::Note(_) => "the server answers something else".into(),
    })
}

impl<'a> Visit<'a> {
    async fn begin(args: &'a ConnectArgs, config: Option<Config>) -> Result<Self, Failure> {
        let dir = state_dir(args)?;
        let (sessions, known) = (Sessions::of(&dir)?, KnownServers::of(&dir));
        let (route, node) = match (&config, args.door.socks) {
            (Some(config), _) => {
                let node = node::start(config, None).await?;
                (Route::Node(node.clone()), Some(node))
            }
            (None, Some(proxy)) => (Route::socks(proxy), None),
            (None, None) => {
                return Err(Failure::Other("no way into the network; name --socks, --config or --bootstrap".into()));
            }
        };
        let client = Client::new(route, args.account.server.clone(), args.deadline());
        match trusted(args, &client, &known).await {
            Ok((server, confirmed)) => Ok(Self { args, client, sessions, server, confirmed, node }),
            Err(failure) => {
                stop(node).await;
                Err(failure)
            }
        }
    }

    async fn end(self) {
        stop(self.node).await;
    }

    const fn username(&self) -> &Username {
        &self.args.account.username
    }

    async fn password(&self, args: &PasswordArgs, new: bool) -> Result<Password, Failure> {
        let account = format!("{}@{}", self.username().as_str(), self.args.account.server);
        let source = args.source();
        // Ctrl-C must not end the process while the terminal echoes nothing: it ends it once asking has ended.
        let (ended, asking) = tokio::sync::oneshot::channel::<()>();
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::system("listen for signals"))?;
        tokio::spawn(async move {
            interrupt.recv().await;
            let _ended = asking.await;
            std::process::exit(INTERRUPTED);
        });
        // A thread of its own: somebody types.
        let asked = spawn_blocking(move || source.get(&account, new)).await;
        drop(ended);
        Ok(asked.map_err(|_| Failure::Other("asking for the password failed".into()))??)
    }

    async fn key(&self, password: Password, parameters: KdfParameters) -> PasswordKey {
        let (server, username) = (self.server.clone(), self.username().clone());
        spawn_blocking(move || argon::password_key(&password, &server, &username, parameters))
            .await
            .expect("hashing a password does not panic")
    }

    /// Keeps the user's session for this command, once no other one has it.
    async fn hold(&self) -> Result<Held, Failure> {
        let (sessions, server, username) = (self.sessions.clone(), self.server.clone(), self.username().clone());
        let waits = || {
            // Nobody may be reading.
            let _unread = writeln!(io::stderr(), "waiting for another command of this user to end");
        };
        let held = spawn_blocking(move || sessions.hold(&server, &username, waits)).await;
        Ok(held.map_err(|_| Failure::Other("waiting for the session failed".into()))??)
    }

    /// Explains a failure that looks like a changed key by asking for the key.
    async fn talked<T>(&self, result: Result<T, TalkError>) -> Result<T, Failure> {
        let error = match result {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if error.may_be_another_key()
            && let Ok(now) = self.client.discover().await
            && now != self.server
        {
            return Err(changed(&self.args.account.server.to_string(), &self.server, &now));
        }
        Err(error.into())
    }
}

async fn stop(node: Option<Node>) {
    if let Some(node) = node {
        node.shutdown().await;
    }
}

fn state_dir(args: &ConnectArgs) -> Result<PathBuf, Failure> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let default = || {
        let base = variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")));
        base.map(|base| base.join("bulbil"))
    };
    let dir = args.state.clone().or_else(default).ok_or_else(|| {
        Failure::Other("there is no home directory to keep the session in; name a directory with --state".into())
    })?;
    state::private_dir(&dir)?;
    Ok(dir)
}

/// The server's key: pinned, remembered, or met for the first time. A key that was not remembered yet is, once the server has shown that it
/// holds it; then it has also said how it wants passwords hashed.
async fn trusted(
    args: &ConnectArgs,
    client: &Client,
    known: &KnownServers,
) -> Result<(PublicKey, Option<KdfParameters>), Failure> {
    let server = &args.account.server;
    let remembered = known.find(server)?;
    if let Some(key) = remembered
        && args.fingerprint.is_none_or(|pinned| key.fingerprint() == pinned)
    {
        return Ok((key, None));
    }
    let key = client.discover().await?;
    match args.fingerprint {
        Some(pinned) if pinned != key.fingerprint() => Err(Failure::Other(format!(
            "the server's key is not the one that --fingerprint names.\n  it has:  {}\n  pinned:  {pinned}\n\
             Somebody may answer in its place. Nothing was sent to it; ask the server's operator for the fingerprint.",
            key.fingerprint()
        ))),
        pinned => {
            let confirmed = client.confirm(&key).await.map_err(|error| match error.may_be_another_key() {
                true => not_held(&server.to_string(), &key, &error),
                false => error.into(),
            })?;
            known.remember(server, &key)?;
            if pinned.is_none() {
                first_met(known.path(), &server.to_string(), &key);
            }
            Ok((key, Some(confirmed)))
        }
    }
}

fn not_held(server: &str, key: &PublicKey, error: &TalkError) -> Failure {
    Failure::Other(format!(
        "what answers at {server} announces a key and does not show that it holds it ({error}).\n  announced:  {}\n\
         Somebody may answer in the server's place. The key was not remembered, and no password was sent; try again, perhaps over another network.",
        key.fingerprint()
    ))
}

fn first_met(file: &Path, server: &str, key: &PublicKey) {
    // On standard error, so that standard output is the answer and nothing else; nobody may be reading either.
    let _unread = writeln!(
        io::stderr(),
        "{server} is met for the first time; its key is remembered in {}. Compare its fingerprint with what the operator says:\n  {}",
        file.display(),
        key.fingerprint()
    );
}

fn changed(server: &str, before: &PublicKey, now: &PublicKey) -> Failure {
    Failure::Other(format!(
        "THE KEY OF {server} HAS CHANGED, or somebody answers in its place.\n  before:  {}\n  now:     {}\n\
         No password was sent. Ask the server's operator. If the change is right, run the command again with\n  --fingerprint {}\n\
         which puts the new key in the old one's place; accounts made under the old key have to be made again.",
        before.fingerprint(),
        now.fingerprint(),
        now.fingerprint()
    ))
}
