use clap::{CommandFactory, error::ErrorKind};

use super::*;

const PIN: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("bulbil").chain(line.split_whitespace()))
}

fn send(line: &str) -> SendArgs {
    match parse(&format!("send {line}")).unwrap().command {
        Command::Send(args) => *args,
        other => panic!("{other:?}"),
    }
}

#[test]
fn definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn takes_every_command() {
    let pinned = format!("send --bootstrap 192.0.2.1:9001#{PIN} --bootstrap [::1]:1#{PIN} example.com:80 hello");
    for line in [
        "demo",
        "demo --log debug --log-format json --log-sensitive",
        "--log trace net",
        "net --socks [::1]:0",
        "node --config node.toml",
        "node --print-config",
        "status --state node",
        "status --config node.toml --json",
        "phonebook list --state node --json",
        "phonebook show --config node.toml 00Ab",
        "phonebook export --state node",
        "phonebook export --state node nodes.txt",
        "phonebook import --state node -",
        "phonebook import --config node.toml --json nodes.txt",
        "keygen --state keys",
        "keygen --state keys --force",
        "keygen --state keys --show",
        "keygen --config node.toml --show",
        "keygen --out key.der",
        "keygen --for-device device",
        "keygen --for-device device --force",
        "auth serve --state server",
        "auth serve --state server --listen [::1]:0 --connections 2000 --argon2 19456,2,1",
        "auth sign-up --socks 127.0.0.1:1080 alice@auth.example:7700",
        "auth sign-in --config c.toml --password-file p --state s --timeout 5 alice@auth.example:7700",
        "auth sign-in --socks 127.0.0.1:1080 --password-stdin alice@[2001:db8::7]:7700",
        "auth act --socks 127.0.0.1:1080 alice@auth.example:7700 read",
        "auth act --socks 127.0.0.1:1080 alice@auth.example:7700 write -",
        "auth disconnect --bootstrap 192.0.2.1:1 --allow-unpinned alice@auth.example:7700",
        "auth users --state server",
        "send --config c.toml example.com:80",
        "send --config c.toml --keep-open --no-sign --timeout 600 --hops 1 [2001:db8::7]:80 -",
        "send --bootstrap 192.0.2.1:1 --allow-unpinned 192.0.2.7:80 hello",
        &pinned,
    ] {
        parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

#[test]
fn refuses_with_exit_code_2_and_says_why() {
    let cases = [
        ("fly", "unrecognized subcommand"),
        ("demo --fast", "unexpected argument"),
        ("auth sign-in alice@auth.example:7700", "required"),
        ("auth sign-in --socks 127.0.0.1:1 --config c alice@auth.example:7700", "cannot be used with"),
        ("auth sign-in --socks 127.0.0.1:1 --password-file p --password-stdin a@b:1", "cannot be used with"),
        ("auth sign-in --socks 127.0.0.1:1 --password tulip a@b:1", "unexpected argument"),
        ("auth act --socks 127.0.0.1:1 alice@auth.example:7700", "Usage"),
        ("auth serve --state s --argon2 1024,1,1", "19456,2,1"),
        ("auth disconnect --socks 127.0.0.1:1 --fingerprint 00 a@b:1", "64 hexadecimal digits"),
        ("demo --log loud", "[possible values: error, warn, info, debug, trace]"),
        ("net --socks 0.0.0.0:1080", "loopback only"),
        ("net --socks 1080", "IP address and port"),
        ("node", "required"),
        ("node --config a --print-config", "cannot be used with"),
        ("status", "required"),
        ("status --state a --config b", "cannot be used with"),
        ("phonebook", "Usage"),
        ("phonebook list", "required"),
        ("phonebook show --state a", "<FINGERPRINT-PREFIX>"),
        ("phonebook show --state a xyz", "1 to 64 of 0-9 and a-f"),
        ("phonebook import --state a", "<FILE>"),
        ("keygen", "required"),
        ("keygen --state a --out b", "cannot be used with"),
        ("keygen --state a --show --force", "cannot be used with"),
        ("keygen --out a --show", "cannot be used with"),
        ("keygen --for-device a --show", "cannot be used with"),
        ("keygen --for-device a --out b", "cannot be used with"),
        ("send example.com:80", "required"),
        ("send --config a", "<HOST:PORT>"),
        ("send --config a --bootstrap 192.0.2.1:1 example.com:80", "cannot be used with"),
        ("send --config a --allow-unpinned example.com:80", "cannot be used with"),
        ("send --config a example.com", "as example.com:80"),
        ("send --config a example.com:0", "as example.com:80"),
        ("send --config a bad_*:80", "as example.com:80"),
        ("send --config a --timeout 0 example.com:80", "1..=600"),
        ("send --config a --hops 5 example.com:80", "1..=4"),
        ("send --bootstrap example.com:1 example.com:80", "numeric address"),
        ("send --bootstrap 192.0.2.1:1#12 example.com:80", "64 hexadecimal digits"),
    ];
    for (line, part) in cases {
        let error = parse(line).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
        assert!(error.to_string().contains(part), "{line} gave {error} without {part:?}");
    }
}

#[test]
fn helps() {
    assert_eq!(parse("--help").unwrap_err().kind(), ErrorKind::DisplayHelp);
    assert_eq!(parse("--version").unwrap_err().exit_code(), 0);
    assert_eq!(parse("").unwrap_err().kind(), ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
    let help = parse("send --help").unwrap_err().to_string();
    for part in ["--keep-open", "--no-sign", "--bootstrap", "standard input", "Example:"] {
        assert!(help.contains(part), "{part} is missing in {help}");
    }
    let help = parse("keygen --help").unwrap_err().to_string();
    for part in ["--for-device <DIR>", "DIR/identity.der", "DIR/link.key", "PKCS#8 DER", "32 bytes"] {
        assert!(help.contains(part), "{part} is missing in {help}");
    }
}

#[test]
fn send_builds_its_client() {
    let args = send(&format!("--bootstrap 192.0.2.1:9001#{PIN} --timeout 5 --hops 2 example.com:80 hello"));
    let config = args.client().unwrap();
    assert_eq!(config.bootstrap[0].to_string(), format!("192.0.2.1:9001#{PIN}"));
    assert_eq!((config.path.hops, SendArgs::deadline(&config)), (2, Duration::from_secs(5)));
    assert!(config.socks.listen.is_empty());
    assert!(args.sign());
    assert_eq!(args.message.unwrap(), "hello");

    assert!(!send("--config a --keep-open example.com:80").sign());
    assert!(!send("--config a --no-sign example.com:80").sign());

    let unpinned = send("--bootstrap 192.0.2.1:9001 example.com:80");
    assert!(unpinned.client().unwrap_err().to_string().contains("has no fingerprint"));
    assert!(send("--bootstrap 192.0.2.1:9001 --allow-unpinned example.com:80").client().is_ok());
}

#[test]
fn send_takes_the_network_from_a_file_but_not_the_role() {
    let scratch = crate::scratch::Scratch::new("cli");
    let file = scratch.path().join("node.toml");
    let text = format!(
        "roles = [\"relay\"]\nlisten = [\"192.0.2.7:1\"]\n\
         bootstrap = [\"192.0.2.1:1#{PIN}\"]\n[path]\nhops = 3\ndeadline_seconds = 7"
    );
    std::fs::write(&file, text).unwrap();
    let config = send(&format!("--config {} example.com:80", file.display())).client().unwrap();
    assert_eq!(config.roles, Config::default().roles);
    assert!(config.listen.is_empty());
    assert_eq!((config.bootstrap.len(), config.path.hops, config.path.deadline_seconds), (1, 3, 7));
}

#[test]
fn the_command_line_overrules_the_file_about_the_log() {
    let base = Log { level: LogLevel::Warn, format: LogFormat::Json, sensitive: true };
    assert_eq!(LogArgs::default().over(&base), base);
    let args = parse("demo --log debug --log-format human").unwrap().log;
    assert_eq!(args.over(&base), Log { level: LogLevel::Debug, format: LogFormat::Human, sensitive: true });
}
