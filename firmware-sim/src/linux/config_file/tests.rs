use super::*;

const PIN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn error(text: &str) -> String {
    text.parse::<NodeFile>().unwrap_err().to_string()
}

#[test]
fn the_printed_default_is_the_default() {
    let printed = default_toml();
    assert_eq!(printed.parse::<NodeFile>().unwrap(), NodeFile::default());
    assert_eq!("".parse::<NodeFile>().unwrap(), NodeFile::default());
    let config = NodeFile::default().node().unwrap();
    assert!(config.relay && config.exit.is_none() && config.client.is_none());
}

#[test]
fn the_printed_example_of_a_request_works_once_it_is_uncommented() {
    let printed = default_toml().replace("roles = [\"relay\"]", "roles = [\"client\"]");
    let printed = printed.replace("contacts = []", &format!("contacts = [\"10.77.0.1:9001#{PIN}\"]"));
    let fields = ["[request]", "target =", "text =", "every_seconds =", "sign =", "hops =", "network_groups ="];
    let text: Vec<String> = printed
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(field) if fields.iter().any(|known| field.starts_with(known)) => field.into(),
            _ => String::from(line),
        })
        .collect();
    let client = text.join("\n").parse::<NodeFile>().unwrap().node().unwrap().client.unwrap();
    assert_eq!(client.bytes.as_slice(), b"GET / HTTP/1.0\r\n\r\n");
    assert_eq!((client.every, client.sign, client.hops.value()), (Some(Duration::from_secs(60)), true, 4));
}

#[test]
fn everything_arrives_in_the_nodes_configuration() {
    let text = format!(
        r#"
profile = "medium"
state = "keys"
roles = ["exit", "client"]
contacts = ["10.1.0.1:9001#{PIN}", "[fd01::2]:9002#{PIN}"]
rotation_seconds = 600
[network]
tap = "tap7"
mac = "02:0a:FF:00:00:07"
addresses = ["10.1.0.7/16", "fd01::7/64"]
gateways = ["10.1.0.1", "fd01::1"]
resolvers = ["10.1.0.53"]
port = 7000
[exit]
policy = ["reject 10.1.0.9/32:*", "accept 10.1.0.0/16:80"]
[request]
target = "example.com:80"
text = "hello"
sign = false
hops = 2
network_groups = "ignore"
[linux]
clock = "none"
faults = "loss=5,delay=100ms"
pcap = "x.pcap"
log = "verbose"
"#
    );
    let file: NodeFile = text.parse().unwrap();
    let config = file.node().unwrap();
    assert_eq!((file.profile, file.linux.clock, file.linux.log), (Profile::Medium, Calendar::None, LogLevel::Verbose));
    assert_eq!(file.linux.faults.to_string(), "loss=5,delay=100ms");
    assert_eq!(config.network.mac.0, [2, 10, 255, 0, 0, 7]);
    assert_eq!(config.network.addresses.len(), 2);
    assert_eq!(config.network.gateway_v4, Some([10, 1, 0, 1].into()));
    assert_eq!(config.network.gateway_v6, Some([0xfd01, 0, 0, 0, 0, 0, 0, 1].into()));
    assert_eq!((config.network.port, config.network.resolvers.len(), config.contacts.len()), (7000, 1, 2));
    assert!(!config.relay && config.exit.is_some());
    let request = config.client.unwrap();
    assert_eq!((request.bytes.as_slice(), request.every, request.sign), (&b"hello"[..], None, false));
    assert_eq!((request.hops.value(), request.strictness), (2, Strictness::Ignore));
}

#[test]
fn relative_paths_begin_at_the_file() {
    let scratch = crate::linux::scratch::Scratch::new("config").unwrap();
    let path = scratch.path().join("node.toml");
    fs::write(&path, "state = \"keys\"\n[linux]\npcap = \"a.pcap\"\n").unwrap();
    let file = NodeFile::load(&path).unwrap();
    assert_eq!(file.state, scratch.path().join("keys"));
    assert_eq!(file.linux.pcap, Some(scratch.path().join("a.pcap")));
    fs::write(&path, [0xff; 4]).unwrap();
    assert!(NodeFile::load(&path).unwrap_err().to_string().contains("UTF-8"));
    fs::write(&path, "nonsense = 1").unwrap();
    let error = NodeFile::load(&path).unwrap_err().to_string();
    assert!(error.contains("node.toml") && error.contains("line 1"), "{error}");
    assert!(NodeFile::load(&scratch.path().join("none")).unwrap_err().to_string().contains("none"));
}

#[test]
fn what_is_wrong_is_named_with_its_place_and_a_remedy() {
    for (text, words) in [
        ("profil = \"small\"", ["line 1", "profil", "--print-config"]),
        ("\n\n[linux]\nfault = \"\"", ["line 4", "fault", "faults"]),
        ("profile = \"large\"", ["large", "small", "medium"]),
        ("roles = [\"boss\"]", ["boss", "relay", "client"]),
        ("roles = []", ["role", "relay", "line 1"]),
        ("[network]\nmac = \"01:00:00:00:00:00\"", ["line 2", "even", "02:"]),
        ("[network]\nmac = \"02:00:00:00:00\"", ["line 2", "six bytes", "02:"]),
        ("[network]\nmac = \"02:00:00:00:00:00:00\"", ["line 2", "six bytes", "02:"]),
        ("[network]\nmac = \"02:00:00:00:00:+1\"", ["line 2", "six bytes", "02:"]),
        ("[network]\naddresses = [\"10.0.0.1\"]", ["line 2", "10.0.0.1", "/24"]),
        ("[network]\naddresses = [\"10.0.0.1/33\"]", ["line 2", "10.0.0.1/33", "/24"]),
        ("[network]\naddresses = [\"0.0.0.0/0\"]", ["line 2", "0.0.0.0/0", "one host"]),
        ("[network]\naddresses = []", ["network", "address", "own"]),
        ("[network]\nport = 0", ["network", "port", "links"]),
        ("[network]\ngateways = [\"10.0.0.1\", \"10.0.0.2\"]", ["network.gateways", "one", "family"]),
        ("[network]\nresolvers = [\"10.0.0.1\", \"10.0.0.2\", \"10.0.0.3\"]", ["network.resolvers", "2", "no more"]),
        ("contacts = [\"10.0.0.1:1\"]", ["contacts", "10.0.0.1:1#FINGERPRINT", "no fingerprint"]),
        ("contacts = [\"10.0.0.1\"]", ["line 1", "10.0.0.1", "fingerprint"]),
        ("rotation_seconds = 10", ["rotation_seconds", "600", "43200"]),
        ("roles = [\"client\"]", ["request", "table", "client"]),
        ("[request]\ntarget = \"a.b:1\"", ["request", "role", "client"]),
        ("[request]\ntext = \"x\"", ["target", "line", "missing"]),
        ("[request]\ntarget = \"nowhere\"", ["line 2", "nowhere", "example.com:80"]),
        ("[request]\ntarget = \"a.b:1\"\nhops = 5", ["line 3", "5", "1 to 4"]),
        ("[linux]\nclock = \"sun\"", ["line 2", "sun", "\"none\""]),
        ("[linux]\nclock = \"none\"", ["contacts", "clock", "system"]),
        ("[linux]\nlog = \"loud\"", ["line 2", "loud", "\"verbose\""]),
        ("[linux]\nfaults = \"loss=101\"", ["line 2", "loss=101", "per cent"]),
        ("[exit]\npolicy = [\"accept everything\"]", ["line 2", "accept everything", "rule"]),
    ] {
        let error = error(text);
        for word in words {
            assert!(error.contains(word), "{text:?} does not say {word:?}: {error}");
        }
    }
}

#[test]
fn a_request_must_fit_the_first_cell() {
    let file = |len: usize, every: &str| {
        let text = "x".repeat(len);
        format!(
            "roles = [\"client\"]\ncontacts = [\"10.0.0.1:1#{PIN}\"]\n[request]\ntarget = \"10.0.0.1:1\"\ntext = \"{text}\"\n{every}"
        )
    };
    assert!(file(REQUEST_MAX, "").parse::<NodeFile>().is_ok());
    assert!(error(&file(REQUEST_MAX + 1, "")).contains("`request.text`"));
    assert!(error(&file(1, "every_seconds = 0")).contains("`request.every_seconds`"));
}

#[test]
fn quoting_is_what_toml_reads() {
    let text = "a \"quoted\" \\ line\r\n\tand \u{1}\u{7f} control, ü and 🌱";
    let toml = format!("[network]\ntap = {}", quoted(text));
    assert_eq!(toml.parse::<NodeFile>().unwrap().network.tap, text);
}
