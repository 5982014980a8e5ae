//! Every crate that the project links has a licence that `deny.toml` allows.

use std::collections::BTreeMap;
use std::process::Command;

use spdx::{Expression, Licensee};

struct Rules {
    allowed: Vec<Licensee>,
    exceptions: BTreeMap<String, Vec<Licensee>>,
}

fn licensees(list: &toml::Value) -> Vec<Licensee> {
    let names = list.as_array().expect("a list of licences");
    names
        .iter()
        .map(|n| n.as_str().expect("a string"))
        .map(|n| Licensee::parse(n).unwrap_or_else(|e| panic!("{n} is no SPDX licence: {e}")))
        .collect()
}

fn rules() -> Rules {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deny.toml"))
        .expect("deny.toml is there");
    let doc: toml::Value = text.parse::<toml::Table>().expect("valid TOML").into();
    let licences = &doc["licenses"];
    let exceptions = licences["exceptions"].as_array().expect("a list of exceptions");
    Rules {
        allowed: licensees(&licences["allow"]),
        exceptions: exceptions
            .iter()
            .map(|e| (e["crate"].as_str().expect("a name").to_owned(), licensees(&e["allow"])))
            .collect(),
    }
}

/// Why a crate's licence will not do, or nothing.
fn objection(rules: &Rules, name: &str, licence: Option<&str>) -> Option<String> {
    let Some(licence) = licence else {
        return Some(format!("{name} declares no licence"));
    };
    let parsed = match Expression::parse_mode(licence, spdx::ParseMode::LAX) {
        Ok(parsed) => parsed,
        Err(e) => return Some(format!("{name}: {licence:?} is no SPDX expression: {}", e.reason)),
    };
    let extra = rules.exceptions.get(name).map_or(&[][..], Vec::as_slice);
    let fine = parsed
        .evaluate(|req| rules.allowed.iter().chain(extra).any(|licensee| licensee.satisfies(req)));
    (!fine).then(|| format!("{name}: {licence} is not allowed by deny.toml"))
}

#[test]
fn every_dependency_has_an_allowed_licence() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform"])
        .arg("x86_64-unknown-linux-gnu")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let used: Vec<&str> = metadata["resolve"]["nodes"]
        .as_array()
        .expect("nodes")
        .iter()
        .map(|n| n["id"].as_str().expect("an id"))
        .collect();
    let packages = metadata["packages"].as_array().expect("packages");
    let rules = rules();
    let wrong: Vec<String> = packages
        .iter()
        .filter(|p| used.contains(&p["id"].as_str().expect("an id")))
        .filter_map(|p| {
            objection(&rules, p["name"].as_str().expect("a name"), p["license"].as_str())
        })
        .collect();
    assert!(used.len() > 20, "only {} crates resolved", used.len());
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn the_check_objects_where_it_should() {
    let rules = rules();
    assert_eq!(objection(&rules, "x", Some("MIT OR GPL-3.0-only")), None);
    assert_eq!(objection(&rules, "btf-rs", Some("LGPL-2.1-or-later")), None);
    assert!(objection(&rules, "x", Some("LGPL-2.1-or-later")).is_some());
    assert!(objection(&rules, "x", Some("MIT AND GPL-2.0-only")).is_some());
    assert!(objection(&rules, "x", None).is_some());
}
