//! `t.read(..)` and `t.write(..)`: single values of the running machine.

use std::sync::Arc;

use rhai::{Dynamic, Map, NativeCallContext};

use super::{Vm, thrown};
use crate::script::fault::{Fault, Native};
use crate::script::options::{Mistake, Options};
use crate::script::register::Package;
use crate::script::session::Session;
use crate::script::values::{described, from_scalar, to_scalar};
use crate::snapshot::{Place, Scalar};

/// What names a place; one of them is in each target.
const NAMES: [&str; 6] = ["symbol", "addr", "percpu", "task", "global", "map"];
const KEYS: [&str; 13] = [
    "symbol", "addr", "percpu", "task", "global", "map", "type", "count", "cpu", "field", "obj",
    "key", "frozen",
];

pub(super) fn register(pkg: &mut Package<'_>, session: &Arc<Session>) {
    let s = session.clone();
    pkg.func(
        "read(self: Vm, target: any) -> any",
        "The value at a place in the running machine, without a snapshot.\n\
         `target` is a variable of the kernel (`\"nr_threads\"`, which needs a type: `#{ symbol, type \
         }`), `#{ addr, type, count }`, `#{ percpu: \"runqueues.nr_running\", cpu }`, `#{ task: tid, \
         field }`, `#{ global: name, obj }`, or `#{ map, key, field, cpu }` of an array. \
         `frozen: true` stops the vCPUs for it. With `count` the result is an array.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm, target: Dynamic| -> Native<Dynamic> {
            let target = parse(&target).map_err(thrown)?;
            let found = t.lab.edit(&target.place, None, target.frozen);
            let mut found = s.lab(&ctx, found)?;
            match (target.many, found.len()) {
                (false, 1) => Ok(from_scalar(found.remove(0))),
                _ => Ok(found.into_iter().map(from_scalar).collect::<rhai::Array>().into()),
            }
        },
    );
    let s = session.clone();
    pkg.func(
        "write(self: Vm, target: any, value: any) -> any",
        "Writes a value to a place in the running machine, and gives the old one.\n\
         Targets are those of `t.read(..)`. Numbers, truth values, enums by name or number, bitfields, \
         floating-point numbers and text in arrays of `char` are written; maps that are frozen \
         (`.rodata`) and the kernel's constants are not. A number that is aligned is one store; text \
         and bitfields of a machine that runs may be seen half-written: `frozen: true` stops the vCPUs \
         for it.",
        move |ctx: NativeCallContext<'_>, t: &mut Vm, target: Dynamic, value: Dynamic| {
            let target = parse(&target).map_err(thrown)?;
            let value = single(&value)?;
            let found = t.lab.edit(&target.place, Some(&value), target.frozen);
            let mut found = s.lab(&ctx, found)?;
            Ok::<_, Box<rhai::EvalAltResult>>(match found.is_empty() {
                true => Dynamic::UNIT,
                false => from_scalar(found.remove(0)),
            })
        },
    );
}

fn single(value: &Dynamic) -> Native<Scalar> {
    match to_scalar(value) {
        Ok(Some(scalar)) => Ok(scalar),
        Ok(None) => Err(Fault::argument(format!(
            "t.write(..) writes a number, true, false or text, not {}; write members and elements \
             one by one",
            described(value)
        ))
        .into()),
        Err(error) => Err(crate::script::data::thrown(error)),
    }
}

struct Target {
    place: Place,
    frozen: bool,
    many: bool,
}

fn mistake(message: String) -> Mistake {
    Mistake { key: None, message, later: false }
}

fn parse(target: &Dynamic) -> Result<Target, Mistake> {
    if let Ok(path) = target.clone().into_string() {
        return Ok(Target { place: Place::Symbol { path, ty: None }, frozen: false, many: false });
    }
    let Some(map) = target.read_lock::<Map>() else {
        return Err(mistake(format!(
            "a target is the name of a variable or a map like #{{ global: \"nr_running\" }}, not {}",
            described(target)
        )));
    };
    let options = Options::new("the target of t.read(..) and t.write(..)", &map, &KEYS, &[])?;
    let named: Vec<&str> = NAMES.into_iter().filter(|name| map.contains_key(*name)).collect();
    let [name] = named[..] else {
        let all = NAMES.join(", ");
        return Err(mistake(match named.len() {
            0 => format!("the target does not say what to read or write; give one of {all}"),
            _ => format!("the target has {}; give one of them", named.join(" and ")),
        }));
    };
    let frozen = options.flag("frozen")?.unwrap_or(false);
    let many = map.contains_key("count");
    let place = place(name, &map, &options)?;
    Ok(Target { place, frozen, many })
}

fn place(name: &str, map: &Map, options: &Options<'_>) -> Result<Place, Mistake> {
    // Nothing that is given may be without effect.
    let belongs: &[&str] = match name {
        "symbol" => &["type"],
        "addr" => &["type", "count"],
        "percpu" => &["type", "cpu"],
        "task" => &["field"],
        "global" => &["obj"],
        _ => &["key", "field", "cpu"],
    };
    let stray = |key: &&str| *key != name && *key != "frozen" && !belongs.contains(key);
    if let Some(stray) = map.keys().map(|key| key.as_str()).find(stray) {
        let all = belongs.join(", ");
        return Err(mistake(format!(
            "\"{stray}\" means nothing beside \"{name}\" in a target; beside it go {all} and frozen"
        )));
    }
    let needs = |key: &str| mistake(format!("a target with \"{name}\" needs \"{key}\" too"));
    let text = |key: &str| options.string(key);
    let must = |key: &str| text(key)?.ok_or_else(|| needs(key));
    let cpu = || Ok::<_, Mistake>(options.number("cpu", 0, 8191)?.map(|n| n as u32));
    Ok(match name {
        "symbol" => Place::Symbol { path: must("symbol")?, ty: text("type")? },
        "addr" => Place::Address {
            at: address(map, options)?,
            ty: must("type")?,
            count: options.number("count", 1, 4096)?.unwrap_or(1) as u32,
        },
        "percpu" => Place::PerCpu {
            path: must("percpu")?,
            ty: text("type")?,
            cpu: cpu()?.ok_or_else(|| needs("cpu"))?,
        },
        "task" => Place::Task {
            tid: options.number("task", 0, i64::from(u32::MAX))?.ok_or_else(|| needs("task"))?
                as u32,
            field: must("field")?,
        },
        "global" => Place::Global { path: must("global")?, obj: text("obj")? },
        _ => Place::Entry {
            map: must("map")?,
            index: options.number("key", 0, i64::from(u32::MAX))?.ok_or_else(|| needs("key"))?
                as u32,
            field: text("field")?,
            cpu: cpu()?,
        },
    })
}

fn address(map: &Map, options: &Options<'_>) -> Result<u64, Mistake> {
    let value = map.get("addr").cloned().unwrap_or(Dynamic::UNIT);
    match to_scalar(&value) {
        Ok(Some(Scalar::Int(at))) => Ok(at.cast_unsigned()),
        Ok(Some(Scalar::U64(at))) => Ok(at),
        _ => {
            let found = described(&value);
            let want = "expected an address, as u64(\"0xffffffff81000000\")";
            Err(options.wrong("addr", format!("{want}, found {found}")))
        }
    }
}
