//! `bulbil send`.

use std::{
    ffi::OsStr,
    io::{self, Read},
    os::unix::ffi::OsStrExt,
};

use super::{Failure, write_out};
use crate::{
    cli::SendArgs,
    config::Config,
    node::{self, Node, SendOptions},
    shutdown::Shutdown,
};

/// Most bytes of a message: it is held in memory as a whole.
const MESSAGE_MAX: u64 = 16 << 20;

/// The message: the argument's bytes, or standard input.
pub(super) fn message(argument: Option<&OsStr>) -> Result<Vec<u8>, Failure> {
    match argument {
        Some(text) if text != "-" => Ok(text.as_bytes().to_vec()),
        _ => read(io::stdin().lock()),
    }
}

fn read(input: impl Read) -> Result<Vec<u8>, Failure> {
    let mut message = Vec::new();
    let read = input.take(MESSAGE_MAX + 1).read_to_end(&mut message);
    read.map_err(Failure::system("read the message from standard input"))?;
    if message.len() as u64 > MESSAGE_MAX {
        return Err(Failure::Other("the message is longer than 16 MiB; use the SOCKS5 proxy for transfers".into()));
    }
    Ok(message)
}

pub(super) async fn run(args: &SendArgs, config: &Config, message: &[u8], shutdown: Shutdown) -> Result<(), Failure> {
    let node = tokio::select! {
        node = node::start(config, None) => node?,
        () = shutdown.requested() => return Err(interrupted()),
    };
    let result = tokio::select! {
        result = converse(&node, args, config, message) => result,
        // The usual end of a conversation that the target does not end.
        () = shutdown.requested() => if args.keep_open { Ok(()) } else { Err(interrupted()) },
    };
    node.shutdown().await;
    result
}

fn interrupted() -> Failure {
    Failure::Other("interrupted before the answer".into())
}

async fn converse(node: &Node, args: &SendArgs, config: &Config, message: &[u8]) -> Result<(), Failure> {
    let deadline = config.path.deadline();
    let options = SendOptions { keep_open: args.keep_open, sign: args.sign(), deadline, repeatable: args.repeatable };
    let mut answers = node.send(args.target.clone(), message, options).await?;
    while let Some(answer) = answers.next().await? {
        write_out(&answer)?;
    }
    if let Some(receipt) = answers.receipt() {
        eprintln!("answer signed by exit {} at Unix time {}", receipt.exit, receipt.time.0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_bytes_and_bounded() {
        assert_eq!(message(Some(OsStr::from_bytes(b"\xff -"))).unwrap(), b"\xff -");
        assert_eq!(message(Some(OsStr::new(""))).unwrap(), b"");
        assert_eq!(read(&b"from a pipe"[..]).unwrap(), b"from a pipe");
        assert_eq!(read(io::repeat(7).take(MESSAGE_MAX)).unwrap().len() as u64, MESSAGE_MAX);
        let error = read(io::repeat(7)).unwrap_err();
        assert_eq!(error.code(), 1);
        assert!(error.to_string().contains("16 MiB"), "{error}");
    }
}
