use bulbil_core::auth::client::Discovery;
use bulbil_core::auth::envelope::Greeting;
use bulbil_core::auth::{GREETING_LEN, KdfParameters};
use tokio::io::{DuplexStream, duplex};

use super::*;
use crate::auth::database::USERS_MAX;
use crate::scratch::Scratch;

struct World {
    server: AuthServer,
    _kept: PlaceKept,
    _writing: Writing,
    _dir: Scratch,
}

fn world() -> World {
    let dir = Scratch::new("auth-server");
    let place = Place::open(&dir.path().join("server"), KdfParameters::FLOOR).unwrap();
    let (database, writing) = place.database(USERS_MAX).unwrap();
    let (server, kept) = AuthServer::new(place, database, Limits::default());
    World { server, _kept: kept, _writing: writing, _dir: dir }
}

/// A client's end of a connection that is being served.
fn connect(world: &World) -> (DuplexStream, tokio::task::JoinHandle<()>) {
    let (ours, theirs) = duplex(64 << 10);
    let shared = Arc::clone(&world.server.shared);
    let serving = tokio::spawn(async move {
        let seat = shared.admit(SocketAddr::from(([192, 0, 2, 1], 1))).unwrap();
        shared.converse(theirs, &seat).await;
    });
    (ours, serving)
}

async fn greeting(stream: &mut DuplexStream) -> Greeting {
    let mut greeting = [0; GREETING_LEN];
    stream.read_exact(&mut greeting).await.unwrap();
    Greeting::parse(&greeting).unwrap()
}

/// Virtual time: deadlines pass when nothing else can happen.
#[tokio::test(start_paused = true)]
async fn who_says_nothing_or_half_is_closed_in_time() {
    let world = world();
    for (said, deadline) in [(&b""[..], 30), (&[6], 20), (&[7, 0x31], 20), (&[7, 0x31, 1, 2, 3], 20)] {
        let (mut stream, serving) = connect(&world);
        let _greeting = greeting(&mut stream).await;
        let before = tokio::time::Instant::now();
        stream.write_all(said).await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(before.elapsed().as_secs(), deadline, "{said:?}");
        serving.await.unwrap();
    }
    assert!(world.server.shared.places().admit(IpAddr::from([192, 0, 2, 1])).is_some_and(|one| !one.evicted));
}

#[tokio::test]
async fn a_wrong_length_is_refused_before_its_bytes() {
    let world = world();
    for length in [0u16, 1, 1551, 1552, 1584, 1586, 1840, 1842, u16::MAX] {
        let (mut stream, serving) = connect(&world);
        let _greeting = greeting(&mut stream).await;
        stream.write_all(&length.to_be_bytes()).await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "{length}");
        serving.await.unwrap();
    }
    let (mut stream, serving) = connect(&world);
    let _greeting = greeting(&mut stream).await;
    stream.write_all(&1841u16.to_be_bytes()).await.unwrap();
    stream.write_all(&[0x5a; 1841]).await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "garbage of the right length");
    serving.await.unwrap();
    assert_eq!(world.server.counts().failed, 10);
}

#[tokio::test(start_paused = true)]
async fn an_answered_client_may_pause_for_a_minute() {
    let world = world();
    let (mut stream, serving) = connect(&world);
    let greeting = greeting(&mut stream).await;
    let mut frame = Frame::new();
    let discovery = Discovery::new(&greeting, &mut SYSTEM.clone(), &mut frame).unwrap();
    stream.write_all(frame.as_ref()).await.unwrap();
    let mut field = [0; LENGTH_LEN];
    stream.read_exact(&mut field).await.unwrap();
    let mut reply = vec![0; discovery.frame_len(field).unwrap()];
    stream.read_exact(&mut reply).await.unwrap();
    assert_eq!(discovery.handle(&mut reply).unwrap(), *world.server.public());
    let before = tokio::time::Instant::now();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(before.elapsed().as_secs(), 60);
    serving.await.unwrap();
    let counts = world.server.counts();
    assert_eq!((counts.accepted, counts.answered, counts.failed), (1, 1, 0));
}

#[test]
fn addresses_are_grouped_by_who_may_own_them() {
    let of = |text: &str| group(text.parse().unwrap());
    assert_eq!(of("192.0.2.1:1"), of("[::ffff:192.0.2.1]:2"));
    assert_ne!(of("192.0.2.1:1"), of("192.0.2.2:1"));
    assert_eq!(of("[2001:db8::1]:1"), of("[2001:db8::ffff:2]:1"));
    assert_ne!(of("[2001:db8::1]:1"), of("[2001:db8:0:1::1]:1"));
}

#[test]
fn only_want_of_resources_makes_others_give_way() {
    for (code, exhaustion) in [
        (Errno::EMFILE, true),
        (Errno::ENFILE, true),
        (Errno::ENOMEM, true),
        (Errno::ECONNABORTED, false),
        (Errno::EPERM, false),
    ] {
        assert_eq!(is_exhaustion(&io::Error::from_raw_os_error(code as i32)), exhaustion, "{code}");
    }
    assert!(!is_exhaustion(&io::Error::other("no number")));
}
