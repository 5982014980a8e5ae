//! First values for a scheduler's variables: from what an author writes to bytes in a section.

use serde_json::Value;

use crate::btf::{Btf, EnumShape, Field, FieldError, Kind, MAX_HOPS, Shape, TypeId};

use super::object::{BpfObject, Variable};
use super::{Patch, SchedulerError};
use crate::words::nearest;

/// Levels of structs and arrays that a value may have.
const MAX_LEVELS: usize = 16;

/// The bytes that give variable `path` (a name, or a path into it as in `"cfg.weights[2]"`) the
/// value. Structs may be given in part.
pub(super) fn patches(
    object: &BpfObject,
    path: &str,
    value: &Value,
) -> Result<Vec<Patch>, SchedulerError> {
    let end = path.find(['.', '[']).unwrap_or(path.len());
    // Names of function-local variables have a dot in them.
    let find = |name: &str| object.variables.iter().find(|v| v.name == name);
    let (variable, rest) = match (find(path), find(&path[..end])) {
        (Some(whole), _) => (whole, ""),
        (None, Some(variable)) => (variable, path[end..].trim_start_matches('.')),
        (None, None) => return Err(no_such_variable(object, path)),
    };
    let btf = &*object.btf;
    let bad = refusal(btf, &variable.name, variable.ty);
    let field = btf.field(variable.ty, rest).map_err(|e| bad(field_problem(e)))?;
    let mut out = Encoder { btf, variable, patches: Vec::new() };
    out.value(path, field, value, 0)?;
    Ok(out.patches)
}

/// The type without the qualifiers that tunables have for the verifier's sake.
fn type_name(btf: &Btf, ty: TypeId) -> String {
    let mut at = ty;
    for _ in 0..MAX_HOPS {
        match btf.kind(at) {
            Some(Kind::Const | Kind::Volatile) => at = btf.target(at).unwrap_or_default(),
            _ => break,
        }
    }
    btf.type_name(at)
}

fn field_problem(error: FieldError) -> String {
    match &error {
        FieldError::NoSuchMember { component, available, .. } => {
            match nearest(component, available.iter().map(String::as_str)) {
                Some(near) => format!("{error}; did you mean `{near}`?"),
                None => error.to_string(),
            }
        }
        _ => error.to_string(),
    }
}

fn no_such_variable(object: &BpfObject, name: &str) -> SchedulerError {
    let names = object.variables.iter().map(|v| v.name.as_str());
    let spelled =
        |v: &Variable| format!("{} ({}, {})", v.name, type_name(&object.btf, v.ty), v.section);
    // What is meant to be set comes first.
    let mut variables: Vec<&Variable> = object.variables.iter().collect();
    variables.sort_by_key(|v| !v.section.starts_with(".rodata"));
    SchedulerError::NoSuchVariable {
        name: name.to_owned(),
        nearest: nearest(name, names).map(str::to_owned),
        available: variables.into_iter().map(spelled).collect(),
    }
}

/// What turns a problem with the value for `name` into the error for it.
fn refusal(btf: &Btf, name: &str, ty: TypeId) -> impl Fn(String) -> SchedulerError {
    move |problem| SchedulerError::Value {
        name: name.to_owned(),
        type_name: type_name(btf, ty),
        problem,
    }
}

struct Encoder<'a> {
    btf: &'a Btf,
    variable: &'a Variable,
    patches: Vec<Patch>,
}

impl Encoder<'_> {
    fn value(
        &mut self,
        name: &str,
        field: Field,
        value: &Value,
        level: usize,
    ) -> Result<(), SchedulerError> {
        let bad = refusal(self.btf, name, field.ty);
        let shape = self.btf.shape(field.ty).map_err(|e| bad(e.to_string()))?;
        if level > MAX_LEVELS {
            return Err(bad("the value is nested too deeply".into()));
        }
        if field.bits.is_some() {
            return Err(bad("bitfields cannot be set".into()));
        }
        let bytes = match &*shape {
            Shape::Array { elem, len, elem_size } => {
                return self.array(name, field, (*elem, *len, *elem_size), value, level);
            }
            Shape::Struct(_) => return self.members(name, field, value, level),
            Shape::Int { bool: true, size, .. } => boolean(value, *size),
            Shape::Int { size, signed, .. } => integer(value, *size, *signed),
            Shape::Float { size: 4, .. } => float(value).map(|v| (v as f32).to_le_bytes().to_vec()),
            Shape::Float { size: 8, .. } => float(value).map(|v| v.to_le_bytes().to_vec()),
            Shape::Enum(e) => enumerator(value, e),
            other => Err(format!("a {} cannot be set", other.kind_name())),
        };
        let bytes = bytes.map_err(bad)?;
        self.put(field, bytes);
        Ok(())
    }

    fn put(&mut self, field: Field, bytes: Vec<u8>) {
        // The variable lies inside its section and the field inside the variable, so the sum
        // fits.
        let offset = u64::from(self.variable.offset) + field.offset;
        let section = self.variable.section.clone();
        self.patches.push(Patch { section, offset: offset as u32, bytes });
    }

    fn array(
        &mut self,
        name: &str,
        field: Field,
        (elem, len, elem_size): (TypeId, u32, u64),
        value: &Value,
        level: usize,
    ) -> Result<(), SchedulerError> {
        let bad = refusal(self.btf, name, field.ty);
        if let (Value::String(text), 1) = (value, elem_size) {
            let room = len as usize;
            if text.len() >= room {
                let have = text.len();
                return Err(bad(format!(
                    "{have} bytes of text and the zero that ends them do not fit into {room}"
                )));
            }
            let mut bytes = text.clone().into_bytes();
            bytes.resize(room, 0);
            self.put(field, bytes);
            return Ok(());
        }
        let Value::Array(values) = value else {
            return Err(bad(format!("{value} is not an array")));
        };
        if values.len() != len as usize {
            return Err(bad(format!("{} values were given for {len} elements", values.len())));
        }
        for (i, value) in values.iter().enumerate() {
            let offset = field.offset + i as u64 * elem_size;
            let element = Field { offset, bits: None, ty: elem, size: elem_size };
            self.value(&format!("{name}[{i}]"), element, value, level + 1)?;
        }
        Ok(())
    }

    fn members(
        &mut self,
        name: &str,
        field: Field,
        value: &Value,
        level: usize,
    ) -> Result<(), SchedulerError> {
        let bad = refusal(self.btf, name, field.ty);
        let Value::Object(values) = value else {
            return Err(bad(format!("{value} is no map of its members")));
        };
        for (key, value) in values {
            let at = self.btf.field(field.ty, key).map_err(|e| bad(field_problem(e)))?;
            let member = Field { offset: field.offset + at.offset, ..at };
            self.value(&format!("{name}.{key}"), member, value, level + 1)?;
        }
        Ok(())
    }
}

fn boolean(value: &Value, size: u32) -> Result<Vec<u8>, String> {
    let value = match value {
        Value::Bool(value) => u8::from(*value),
        Value::Number(n) if n.as_u64() == Some(0) => 0,
        Value::Number(n) if n.as_u64() == Some(1) => 1,
        other => return Err(format!("{other} is neither true nor false")),
    };
    let mut bytes = vec![0; size as usize];
    bytes[0] = value;
    Ok(bytes)
}

fn integer(value: &Value, size: u32, signed: bool) -> Result<Vec<u8>, String> {
    let Value::Number(number) = value else {
        return Err(format!("{value} is not an integer"));
    };
    let wide = number
        .as_i64()
        .map(i128::from)
        .or_else(|| number.as_u64().map(i128::from))
        .ok_or_else(|| format!("{number} is not an integer"))?;
    in_range(wide, size, signed)
}

fn in_range(value: i128, size: u32, signed: bool) -> Result<Vec<u8>, String> {
    // Numbers of 16 bytes are given in 8.
    let bits = (size * 8).min(64);
    let (low, high) = match signed {
        true => (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1),
        false => (0, (1i128 << bits) - 1),
    };
    if value < low || value > high {
        return Err(format!("{value} is out of its range {low} to {high}"));
    }
    Ok(value.to_le_bytes()[..size as usize].to_vec())
}

fn float(value: &Value) -> Result<f64, String> {
    value.as_f64().ok_or_else(|| format!("{value} is not a number"))
}

fn enumerator(value: &Value, e: &EnumShape) -> Result<Vec<u8>, String> {
    let Value::String(name) = value else {
        return integer(value, e.size, e.signed)
            .map_err(|problem| format!("{problem}; {}", enumerators(e)));
    };
    match e.variants.iter().find(|(known, _)| known == name) {
        Some((_, value)) => Ok(value.to_le_bytes()[..e.size as usize].to_vec()),
        None => {
            let near = nearest(name, e.variants.iter().map(|(known, _)| known.as_str()));
            let near = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            Err(format!("`{name}` is not one of its values{near}; {}", enumerators(e)))
        }
    }
}

fn enumerators(e: &EnumShape) -> String {
    const SHOWN: usize = 12;
    let names: Vec<&str> = e.variants.iter().take(SHOWN).map(|(name, _)| name.as_str()).collect();
    let more = e.variants.len().saturating_sub(SHOWN);
    match more {
        0 => format!("they are {}", names.join(", ")),
        _ => format!("they are {} and {more} more", names.join(", ")),
    }
}
