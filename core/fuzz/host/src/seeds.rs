//! The inputs that every search begins with. The host's `tests/corpus.rs` writes them into the corpora and checks that they are there.

use bulbil_host::config::default_toml;

/// An input and the name of its file.
pub type Seed = (&'static str, Vec<u8>);

/// Clients of every kind: how the circuit opens, in what pieces they speak, what they say.
pub fn socks() -> Vec<Seed> {
    let said = |said: &[u8]| [&[0, 7], said].concat();
    let ip = [5, 1, 0, 1, 192, 0, 2, 7, 0, 80];
    let named = |name: &[u8]| [&[5, 1, 0, 3, name.len() as u8], name, &[1, 187]].concat();
    let with = |greeting: &[u8], request: &[u8]| said(&[greeting, request].concat());
    let none = [5, 1, 0];
    let password = [&[5, 2, 0, 2, 1, 5][..], b"alice", &[6], b"secret"].concat();
    let seeds = [
        ("ipv4", with(&none, &ip)),
        ("ipv4-and-first-bytes", with(&none, &[&ip, &b"GET / HTTP/1.1\r\n\r\n"[..]].concat())),
        ("ipv6", with(&none, &[&[5, 1, 0, 4, 0x20, 1, 0xd, 0xb8][..], &[0; 11], &[7, 1, 187]].concat())),
        ("name", with(&none, &named(b"Example.org"))),
        ("name-that-is-an-address", with(&none, &named(b"192.0.2.7"))),
        ("name-that-is-an-address-in-brackets", with(&none, &named(b"[2001:DB8::7]"))),
        ("longest-name", with(&none, &named(&[b'a'; 253]))),
        ("name-too-long", with(&none, &named(&[b'a'; 254]))),
        ("no-name", with(&none, &named(b""))),
        ("name-with-a-space", with(&none, &named(b"example org"))),
        ("password", with(&password, &named(b"example.org"))),
        ("empty-password", with(&[5, 1, 2, 1, 0, 0], &ip)),
        ("password-of-another-version", with(&[5, 1, 2, 5, 0, 0], &ip)),
        ("no-method", said(&[5, 0])),
        ("no-known-method", said(&[5, 2, 1, 3])),
        ("bind", with(&none, &[5, 2, 0, 1, 192, 0, 2, 7, 0, 80])),
        ("unknown-address-type", with(&none, &[5, 1, 0, 2, 192, 0, 2, 7, 0, 80])),
        ("reserved", with(&none, &[5, 1, 1, 1, 192, 0, 2, 7, 0, 80])),
        ("port-0", with(&none, &[5, 1, 0, 1, 192, 0, 2, 7, 0, 0])),
        ("cut-off", with(&none, &ip[..7])),
        ("socks4", said(&[4, 1, 0, 80, 192, 0, 2, 7, 0])),
        ("http", said(b"CONNECT example.org:443 HTTP/1.1\r\n\r\n")),
        ("tls", said(&[0x16, 3, 1])),
        ("refused", [&[128 + 5, 3][..], &none, &ip].concat()),
        ("not-in-time", [&[128 + 6, 4][..], &none, &ip].concat()),
    ];
    seeds.into()
}

/// Configurations, right and wrong.
pub fn config() -> Vec<Seed> {
    let text = |text: &str| text.as_bytes().to_vec();
    let relay = "roles = [\"relay\", \"exit\"]\nlisten = [\"192.0.2.1:9001\", \"[2001:db8::1]:9001\"]\n";
    let pin = "0f".repeat(32);
    let seeds = [
        ("default", default_toml().into_bytes()),
        ("empty", text("")),
        ("relay", text(relay)),
        ("rule-of-nothing", text("[exit]\npolicy = [\"  \"]\n")),
        ("exit", text(&format!("{relay}[exit]\npolicy = [\"reject private:*\", \"accept *:80-443\"]\n"))),
        ("bootstrap", text(&format!("bootstrap = [\"192.0.2.1:9001#{pin}\", \"[2001:db8::1]:9001#{pin}\"]\n"))),
        ("unpinned", text("allow_unpinned = true\nbootstrap = [\"192.0.2.1:9001\"]\n")),
        ("unpinned-and-not-allowed", text("bootstrap = [\"192.0.2.1:9001\"]\n")),
        ("state", text("state = 'C:\\a \"b\"'\n[log]\nlevel = \"trace\"\nformat = \"json\"\nsensitive = true\n")),
        ("inline-tables", text("path = { hops = 3, network_groups = \"ignore\" }\nlimits.cells = 0x400\n")),
        ("remote-socks", text("[socks]\nlisten = [\"0.0.0.0:1080\", \"[::1]:1080\"]\nallow_remote = true\n")),
        ("remote-socks-not-allowed", text("[socks]\nlisten = [\"192.0.2.1:1080\"]\n")),
        ("rsa", text("[onion_key]\nkind = \"rsa2048\"\nrotation_seconds = 604800\n")),
        ("unreachable", text("listen = [\"0.0.0.0:1\"]\nadvertise = [\"224.0.0.1:1\"]\n")),
        ("relay-that-listens-nowhere", text("roles = [\"relay\"]\n")),
        ("role-twice", text("roles = [\"client\", \"client\"]\n")),
        ("unknown-field", text("[limits]\nlinks = 7\nlink = 7\n")),
        ("of-another-type", text("\n\nlisten = \"192.0.2.1:9001\"\n")),
        ("not-toml", text("hops = \n")),
        ("too-many-half-open", text("[limits]\nlinks = 4\n")),
        ("too-many-on-one-link", text("[limits]\ncircuits = 4095\n")),
        ("rule-of-no-sense", text("[exit]\npolicy = [\"accept *:443\", \"accept 443\"]\n")),
        ("number-least", vec![0, 0, 2, 1, 0]),
        ("number-below", vec![0, 0, 2, 0, 1]),
        ("number-most", vec![0, 0, 15, 2, 2]),
        ("number-above", vec![0, 0, 15, 3, 3]),
        ("number-any", vec![0, 0, 12, 4, 0, 0, 0, 0, 0, 0, 0x20, 0, 0]),
    ];
    seeds.into()
}
