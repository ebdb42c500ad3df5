//! At an exit: resolve a target and connect to it, under the exit policy.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bulbil_core::wire::policy::{Policy, Verdict};
use bulbil_core::wire::{EndReason, Host, Target};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use crate::files::is_exhaustion;

/// How long a name may take to be resolved.
const RESOLVE: Duration = Duration::from_secs(10);
/// How long one address may take to answer.
const CONNECT: Duration = Duration::from_secs(15);
/// Addresses of one name that are tried.
const ADDRESSES: usize = 4;

/// Connects to `target`; what is answered otherwise is told to the client.
pub(crate) async fn connect(target: &Target, policy: &Policy) -> Result<(TcpStream, SocketAddr), EndReason> {
    let addresses = match target {
        Target::Service(_) => return Err(EndReason::NoService),
        Target::Tcp(Host::Ip(ip), port) => vec![SocketAddr::new(*ip, *port)],
        Target::Tcp(Host::Name(name), port) => resolve(name.as_str(), *port).await?,
    };
    let allowed: Vec<_> = addresses.into_iter().filter(|&to| policy.decide(to) == Verdict::Accept).collect();
    let mut outcome = EndReason::Forbidden;
    for address in allowed.into_iter().take(ADDRESSES) {
        outcome = match timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Interactive conversations would wait for Nagle at every hop otherwise.
                let _only_slower = stream.set_nodelay(true);
                return Ok((stream, address));
            }
            Ok(Err(error)) => reason_of(&error),
            Err(_) => EndReason::TimedOut,
        };
    }
    Err(outcome)
}

async fn resolve(name: &str, port: u16) -> Result<Vec<SocketAddr>, EndReason> {
    match timeout(RESOLVE, lookup_host((name, port))).await {
        Ok(Ok(addresses)) => {
            let addresses: Vec<_> = addresses.collect();
            if addresses.is_empty() { Err(EndReason::NotResolved) } else { Ok(addresses) }
        }
        Ok(Err(_)) => Err(EndReason::NotResolved),
        Err(_) => Err(EndReason::TimedOut),
    }
}

fn reason_of(error: &io::Error) -> EndReason {
    match error.kind() {
        // The target has nothing to do with it, and another exit may have room.
        _ if is_exhaustion(error) => EndReason::Busy,
        io::ErrorKind::ConnectionRefused => EndReason::Refused,
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => EndReason::Reset,
        io::ErrorKind::TimedOut => EndReason::TimedOut,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => EndReason::Unreachable,
        _ => EndReason::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn says_why_a_target_is_not_reached() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let loopback = Policy::loopback();

        let (_, reached) = connect(&address.into(), &loopback).await.unwrap();
        assert_eq!(reached, address);
        assert_eq!(connect(&address.into(), &Policy::default()).await.unwrap_err(), EndReason::Forbidden);

        drop(listener);
        assert_eq!(connect(&address.into(), &loopback).await.unwrap_err(), EndReason::Refused);
        let unknown: Target = "no-such-host.invalid:80".parse().unwrap();
        assert_eq!(connect(&unknown, &loopback).await.unwrap_err(), EndReason::NotResolved);
        let service: Target = "phonebook".parse().unwrap();
        assert_eq!(connect(&service, &loopback).await.unwrap_err(), EndReason::NoService);
    }

    #[tokio::test]
    async fn a_name_does_not_get_around_the_policy() {
        let target: Target = "localhost:80".parse().unwrap();
        assert_eq!(connect(&target, &Policy::default()).await.unwrap_err(), EndReason::Forbidden);
    }
}
