//! The table of expected verdicts: files of rules, and who is judged how by them.
//!
//! A case is `HOW DATABASE USER [ADDRESS] -> VERDICT`: `l` comes by Unix socket, `t` by TCP, `s` by TCP
//! with TLS, `p` by TCP for physical replication, `q` by TLS for it. The verdict is `LINE method`, or
//! `none`. Lines are counted within their file.

use super::*;
use std::io;
use std::path::Path;

const IDENT: &str = "known alice alice\n";

/// What `@file` finds.
fn include(path: &Path) -> io::Result<Vec<u8>> {
    let text: &[u8] = match path.to_str() {
        Some("/etc/rb/names") => b"one two\n# three\nthree,\"all\"  # four\n@sub/more\n",
        Some("/etc/rb/sub/more") => b"deep @deeper",
        Some("/etc/rb/sub/deeper") => b"deepest",
        Some("/etc/rb/empty") => b"# nobody\n",
        Some("/etc/rb/loop") => b"x @loop",
        Some("/etc/rb/words") => b"all sameuser replication",
        _ => return Err(io::ErrorKind::NotFound.into()),
    };
    Ok(text.to_vec())
}

fn read(text: &str) -> (Hba, Vec<HbaWarning>) {
    let mut warnings = Vec::new();
    let maps = IdentMaps::parse(Path::new("/etc/rb/ident"), IDENT.as_bytes(), &mut warnings);
    let interface = |address: &str, mask: &str| Interface {
        address: address.parse().unwrap(),
        mask: mask.parse().unwrap(),
    };
    let machine = [
        interface("127.0.0.1", "255.0.0.0"),
        interface("192.168.7.3", "255.255.255.0"),
        interface("fd00::3", "ffff:ffff:ffff:ffff::"),
    ];
    let sources = HbaSources {
        path: Path::new("/etc/rb/hba"),
        maps: &maps,
        machine: &machine,
        read: &include,
    };
    let hba = Hba::parse(text.as_bytes(), &sources, &mut warnings);
    (hba, warnings)
}

fn name(method: &HbaMethod) -> &'static str {
    match method {
        HbaMethod::Trust => "trust",
        HbaMethod::Reject => "reject",
        HbaMethod::Md5 => "md5",
        HbaMethod::Password => "password",
        HbaMethod::ScramSha256 => "scram-sha-256",
        HbaMethod::Peer(_) => "peer",
        HbaMethod::Cert(_) => "cert",
        HbaMethod::Ldap(_) => "ldap",
        HbaMethod::Pam(_) => "pam",
    }
}

fn verdict(hba: &Hba, case: &str) -> String {
    let words: Vec<&str> = case.split_whitespace().collect();
    let arrival = Arrival {
        address: words.get(3).map(|address| address.parse().unwrap()),
        is_tls: matches!(words[0], "s" | "q"),
        database: words[1],
        user: words[2],
        is_physical_replication: matches!(words[0], "p" | "q"),
    };
    assert_eq!(arrival.address.is_none(), words[0] == "l", "{case}");
    hba.decide(&arrival).map_or_else(
        || "none".to_owned(),
        |rule| format!("{} {}", rule.line, name(&rule.method)),
    )
}

/// Files and their cases, each group separated from the next by a line of dashes.
const TABLE: &str = r#"
local all all trust
host all all all md5
=
l db alice -> 1 trust
t db alice 10.0.0.1 -> 2 md5
s db alice 10.0.0.1 -> 2 md5
t db alice ::1 -> 2 md5
p db alice 10.0.0.1 -> none
q db alice 10.0.0.1 -> none
----
hostssl all all all scram-sha-256
hostnossl all all 10.0.0.0/8 md5
host all all 0.0.0.0/0 reject
=
s db alice 10.0.0.1 -> 1 scram-sha-256
t db alice 10.0.0.1 -> 2 md5
t db alice 11.0.0.1 -> 3 reject
s db alice ::1 -> 1 scram-sha-256
t db alice ::1 -> none
l db alice -> none
----
hostgssenc all all all trust
hostnogssenc all all all password
=
t db alice 10.0.0.1 -> 2 password
s db alice 10.0.0.1 -> 2 password
l db alice -> none
----
host db alice 10.1.2.3/32 trust
host db alice 10.1.2.0/24 md5
host db alice 10.1.0.0/16 password
host db alice 10.0.0.0/8 scram-sha-256
host db alice 0.0.0.0/0 reject
=
t db alice 10.1.2.3 -> 1 trust
t db alice 10.1.2.4 -> 2 md5
t db alice 10.1.3.4 -> 3 password
t db alice 10.2.3.4 -> 4 scram-sha-256
t db alice 11.2.3.4 -> 5 reject
t db bob 10.1.2.3 -> none
t other alice 10.1.2.3 -> none
t DB alice 10.1.2.3 -> none
t db Alice 10.1.2.3 -> none
t db alice ::ffff:10.1.2.3 -> 1 trust
t db alice ::ffff:11.1.2.3 -> 5 reject
t db alice fd00::1 -> none
----
host all all 10.1.2.3/24 trust
host all all 10.1.2.128/25 md5
host all all 10.1.4.1/31 password
=
t db alice 10.1.2.200 -> 1 trust
t db alice 10.1.3.200 -> none
t db alice 10.1.4.0 -> 3 password
t db alice 10.1.4.1 -> 3 password
t db alice 10.1.4.2 -> none
----
host all all 10.1.0.0 255.255.0.0 trust
host all all 10.2.0.7 255.0.0.255 md5
host all all 10.3.0.1 255.255.255.255 password
host all all 0.0.0.0 0.0.0.0 reject
=
t db alice 10.1.9.9 -> 1 trust
t db alice 10.200.99.7 -> 2 md5
t db alice 10.3.0.1 -> 3 password
t db alice 10.3.0.2 -> 4 reject
t db alice fd00::1 -> none
----
host all all fd00::/8 trust
host all all fe80::1/128 md5
host all all 2001:db8:: ffff:ffff:: password
host all all ::/0 reject
=
t db alice fd12::1 -> 1 trust
t db alice fe80::1 -> 2 md5
t db alice fe80::2 -> 4 reject
t db alice 2001:db8:1::1 -> 3 password
t db alice 2001:db9::1 -> 4 reject
t db alice 10.0.0.1 -> none
t db alice ::ffff:10.0.0.1 -> none
----
host all all samehost trust
host all all samenet md5
=
t db alice 127.0.0.1 -> 1 trust
t db alice 127.0.0.2 -> 2 md5
t db alice 192.168.7.3 -> 1 trust
t db alice 192.168.7.9 -> 2 md5
t db alice 192.168.8.3 -> none
t db alice fd00::3 -> 1 trust
t db alice fd00::4 -> 2 md5
t db alice fd01::3 -> none
l db alice -> none
----
local sameuser all trust
local all alice md5
=
l alice alice -> 1 trust
l bob bob -> 1 trust
l bob alice -> 2 md5
l alice bob -> none
----
host replication repl all trust
host all all all md5
=
p any repl 10.0.0.1 -> 1 trust
q any repl 10.0.0.1 -> 1 trust
p any alice 10.0.0.1 -> none
t any repl 10.0.0.1 -> 2 md5
t replication repl 10.0.0.1 -> 2 md5
----
host "replication" all all trust
host sameuser,all all all reject
=
t replication alice 10.0.0.1 -> 1 trust
p replication alice 10.0.0.1 -> none
p alice alice 10.0.0.1 -> none
t other alice 10.0.0.1 -> 2 reject
----
local "all" all trust
local "sameuser" all md5
local all "all" password
=
l all alice -> 1 trust
l sameuser alice -> 2 md5
l db all -> 3 password
l db alice -> none
l alice alice -> none
----
local db1,db2 alice,bob trust
local db3 , carol md5
local "a,b" all password
local one, two all scram-sha-256
=
l db1 alice -> 1 trust
l db2 bob -> 1 trust
l db3 alice -> none
l db1 carol -> none
l db3 carol -> 2 md5
l a,b alice -> 3 password
l a alice -> none
l one alice -> 4 scram-sha-256
l two bob -> 4 scram-sha-256
----
local "we""ird" "us er" trust
local d"b x" all md5
local Db all password
=
l we"ird us -> none
l db alice -> none
l Db alice -> 3 password
----
local @names all trust
local all @names md5
local @empty all password
local all @empty password
=
l one alice -> 1 trust
l two alice -> 1 trust
l three alice -> 1 trust
l all alice -> 1 trust
l deep alice -> 1 trust
l deepest alice -> 1 trust
l four alice -> none
l other one -> 2 md5
l other deepest -> 2 md5
l other all -> 2 md5
l other alice -> none
l @names alice -> none
----
local @words all trust
local one,@names,last all md5
local "@names" all password
=
l anything alice -> 1 trust
l last alice -> 1 trust
p anything alice 10.0.0.1 -> none
----
local @missing all trust
local @loop all trust
local all @missing,alice trust
local all all reject
=
l missing alice -> 4 reject
l x alice -> 4 reject
l db bob -> 4 reject
----
local /^app_[0-9]+$ all trust
local "/^(a|b),c$" all md5
local all /^svc- password
local all /( trust
=
l app_12 alice -> 1 trust
l app_x alice -> none
l xapp_1 alice -> none
l a,c alice -> 2 md5
l db svc-1 -> 3 password
l db xsvc-1 -> none
l db ( -> none
----
local samerole all trust
local all +staff trust
local +group all trust
local "samerole" all md5
local all "+staff" password
=
l samerole alice -> 4 md5
l db staff -> none
l db +staff -> 5 password
l +group alice -> none
----
local all all peer
local all all ident
host all all all peer
host all all all ident
host all all all cert
hostnossl all all all cert
hostssl all all all cert
=
l db alice -> 1 peer
t db alice 10.0.0.1 -> 3 peer
s db alice 10.0.0.1 -> 3 peer
----
host all all all ident
host all bob all cert
hostnossl all alice all cert
hostssl all all all cert
=
t db bob 10.0.0.1 -> 2 cert
s db bob 10.0.0.1 -> 2 cert
t db alice 10.0.0.1 -> 3 cert
s db alice 10.0.0.1 -> 4 cert
----
local all bob ident map=known
local all alice peer map=unknown
local all alice trust
hostssl all all all cert map=known
=
l db bob -> 1 peer
l db alice -> 2 peer
s db alice 10.0.0.1 -> 4 cert
----
host all a all ldap ldapserver=x ldapprefix="cn=" ldapsuffix=", dc=x"
host all b all ldap ldapurl="ldap://x/dc=x?uid?sub"
host all c all ldap ldapserver=x
host all d all ldap
host all e all ldap ldapserver=x ldapprefix=a ldapbasedn=b
host all f all ldap ldapserver=x ldapprefix=a ldapport=99999
host all g all ldap ldapserver="x y" ldapbasedn="dc=x" ldapsearchattribute=cn
host all all all reject
=
t db a 10.0.0.1 -> 1 ldap
t db b 10.0.0.1 -> 2 ldap
t db c 10.0.0.1 -> 8 reject
t db d 10.0.0.1 -> 8 reject
t db e 10.0.0.1 -> 8 reject
t db f 10.0.0.1 -> 8 reject
t db g 10.0.0.1 -> 7 ldap
----
host all a all pam
host all b all pam pamservice=postgresql
host all c all pam map=known
host all d all md5 pamservice=x
host all e all trust map=known
host all f all md5 ldapserver=x
host all g all md5 nonsense
host all h all md5 no=sense
host all i all gss
host all j all radius
host all k all MD5
=
t db a 10.0.0.1 -> 1 pam
t db b 10.0.0.1 -> 2 pam
t db c 10.0.0.1 -> none
t db d 10.0.0.1 -> none
t db e 10.0.0.1 -> none
t db f 10.0.0.1 -> none
t db g 10.0.0.1 -> none
t db h 10.0.0.1 -> none
t db i 10.0.0.1 -> none
t db j 10.0.0.1 -> none
t db k 10.0.0.1 -> none
----
hostssl all a all md5 clientcert=verify-ca
hostssl all b all scram-sha-256 clientcert=verify-full
hostssl all c all md5 clientcert=1
host all d all md5 clientcert=verify-ca
local all e md5 clientcert=verify-ca
=
s db a 10.0.0.1 -> 1 md5
s db b 10.0.0.1 -> 2 scram-sha-256
s db c 10.0.0.1 -> none
s db d 10.0.0.1 -> none
l db e -> none
----
host all all 10.0.0.1 trust
host all all 10.0.0.0/33 trust
host all all 10.0.0.0/ trust
host all all 10.0.0.0/+8 trust
host all all 10.0.0/8 trust
host all all 010.0.0.1/32 trust
host all all fd00::/129 trust
host all all fe80::1%eth0/64 trust
host all all 10.0.0.0 ffff:: trust
host all all 10.0.0.0 255.0.0 trust
host all all example.com trust
host all all .example.com trust
host all all 10.0.0.1/32,10.0.0.2/32 trust
host all all "all" trust
=
t db alice 10.0.0.1 -> none
t db alice 8.0.0.1 -> none
t db alice fd00::1 -> none
t db alice fe80::1 -> none
----
# a comment line

	local	all	alice	trust	# behind a rule
  local all bob md5#glued
local all carol \
  password
local all dave "trust"
"local" all erin trust
local,host all frank trust
local all gina trust,md5
local all
local
local all harry
remote all all trust
host all ian all
Local all jane trust
local all kate trust
=
l db alice -> 3 trust
l db bob -> 4 md5
l db carol -> 5 password
l db dave -> 7 trust
l db erin -> 8 trust
l db frank -> none
l db gina -> none
l db harry -> none
t db ian 10.0.0.1 -> none
l db jane -> none
l db kate -> 17 trust
----
=
l db alice -> none
t db alice 10.0.0.1 -> none
s db alice 10.0.0.1 -> none
p db alice 10.0.0.1 -> none
----
local all alice reject
local all all trust
local all alice trust
=
l db alice -> 1 reject
l db bob -> 2 trust
----
host all all all trust
host all all 10.0.0.1/32 reject
=
t db alice 10.0.0.1 -> 1 trust
"#;

#[test]
fn verdicts_are_as_in_the_table() {
    let mut count = 0;
    for group in TABLE.strip_prefix('\n').unwrap().split("----\n") {
        let (file, cases) = match group.strip_prefix("=\n") {
            Some(cases) => ("", cases),
            None => group.split_once("\n=\n").expect("rules and cases"),
        };
        let (hba, _) = read(file);
        for case in cases.lines() {
            let (case, want) = case.split_once(" -> ").expect("a case");
            assert_eq!(verdict(&hba, case), want, "{case} under\n{file}");
            count += 1;
        }
    }
    assert!(count >= 150, "{count} cases");
}

#[test]
fn every_skipped_line_is_reported_and_no_other() {
    let skipped = |text| -> Vec<usize> { read(text).1.iter().map(|w| w.line).collect() };
    assert_eq!(skipped("local all all trust\nhost all all all md5\n"), []);
    assert_eq!(
        skipped("nonsense\n# fine\nlocal all\nlocal all \"x\nlocal all all trust"),
        [1, 3, 4]
    );
    assert_eq!(
        skipped("local @missing all trust\nlocal @loop all trust"),
        [1, 2]
    );
    assert_eq!(skipped("host all all example.com md5"), [1]);
}

#[test]
fn rule_with_a_map_that_is_missing_lets_nobody_in_but_decides() {
    let (hba, warnings) = read("local all all peer map=nope\nlocal all all trust");
    assert_eq!(warnings[0].fault, RuleFault::NoMap("nope".into()));
    let [rule, _] = hba.rules() else {
        panic!("two rules")
    };
    let HbaMethod::Peer(Some(map)) = &rule.method else {
        panic!("peer with a map")
    };
    assert!(!map.allows("alice", "alice"));
}

#[test]
fn warnings_name_file_line_and_reason() {
    let (_, warnings) = read("\nhost all all example.com md5");
    assert_eq!(
        warnings[0].to_string(),
        "/etc/rb/hba:2: host names are not supported as addresses (\"example.com\")"
    );
}

#[test]
fn secrets_of_ldap_options_are_not_in_warnings() {
    let text = "host all all all md5 ldapbindpasswd=hunter2\nhost all all all ldap ldapserver=x ldapbindpasswd=hunter2";
    for warning in read(text).1 {
        assert!(!warning.to_string().contains("hunter2"), "{warning}");
    }
}
