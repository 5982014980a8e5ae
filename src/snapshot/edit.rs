//! Single values of a machine, read and written without a snapshot.

use super::Scalar;
use super::capture::Capturer;
use super::value::decode;
use crate::introspect::{New, Object};

pub use crate::introspect::Place;

/// Bytes of one value.
const MAX_VALUE: usize = 4096;

impl Capturer {
    /// The values at a place.
    ///
    /// # Errors
    /// There is no such place, or what is there is no single value; says what to name instead.
    pub fn read_place(&self, place: &Place) -> Result<Vec<Scalar>, String> {
        let read = |object: &Object<'_>| {
            let raw = object.bytes(MAX_VALUE).map_err(|e| e.to_string())?;
            scalar(object, &raw)
        };
        self.kernel().at_place(place).map_err(|e| e.to_string())?.iter().map(read).collect()
    }

    /// Writes to a place; what was there before.
    ///
    /// # Errors
    /// There is no such place, it is of those that are not written, or the value does not fit.
    /// Nothing has been written then.
    pub fn write_place(&self, place: &Place, value: &Scalar) -> Result<Scalar, String> {
        let new = match value {
            Scalar::Int(n) => New::Int((*n).into()),
            Scalar::U64(n) => New::Int((*n).into()),
            Scalar::Float(x) => New::Float(*x),
            Scalar::Bool(b) => New::Bool(*b),
            Scalar::Str(text) => New::Text(text.clone()),
            Scalar::Enum(value) => New::Int(value.value()),
        };
        let (object, old) = self.kernel().write_place(place, &new).map_err(|e| e.to_string())?;
        // What can be written can be read, but for text that was none.
        scalar(&object, &old).or_else(|_| Ok(Scalar::Str(String::from_utf8_lossy(&old).into())))
    }
}

fn scalar(object: &Object<'_>, raw: &[u8]) -> Result<Scalar, String> {
    decode(object.btf(), object.type_id(), object.bits(), raw).map_err(|found| {
        format!("that is {found} and no single value; name a member of it, or an element")
    })
}
