//! Finds the values that a path leads to.

use super::{Comparison, EvalError, Filter, From, MAX_VISITS, Operand, Path, Pick, Step};
use serde_json::Value;

/// A search in one document, with what it may still look at.
pub(super) struct Search<'v> {
    root: &'v Value,
    left: usize,
}

impl<'v> Search<'v> {
    pub(super) fn new(root: &'v Value) -> Self {
        Self { root, left: MAX_VISITS }
    }

    fn spend(&mut self, visits: usize) -> Result<(), EvalError> {
        self.left = self.left.checked_sub(visits).ok_or(EvalError::Visits)?;
        Ok(())
    }

    /// The values of a path that begins at the root or at `current`, in the order of the document.
    pub(super) fn find(&mut self, path: &Path, current: &'v Value) -> Result<Vec<&'v Value>, EvalError> {
        let mut found = vec![match path.from {
            From::Root => self.root,
            From::Current => current,
        }];
        for step in &path.steps {
            let mut next = Vec::new();
            if let Step::Pick(picks) = step {
                // As in kubectl: everything of the first part of a union comes first.
                self.spend(found.len().saturating_mul(picks.len()))?;
                for pick in picks {
                    found.iter().for_each(|value| picked(pick, value, &mut next));
                }
            } else {
                for value in found {
                    self.spend(1)?;
                    self.step(step, value, &mut next)?;
                }
            }
            self.spend(next.len())?;
            found = next;
        }
        Ok(found)
    }

    fn step(&mut self, step: &Step, value: &'v Value, into: &mut Vec<&'v Value>) -> Result<(), EvalError> {
        match step {
            Step::Field(name) => into.extend(value.get(name)),
            Step::All => {
                let before = into.len();
                into.extend(children(value));
                self.spend(into.len() - before)?;
            }
            Step::Descend => {
                let mut waiting = vec![value];
                while let Some(next) = waiting.pop() {
                    self.spend(1)?;
                    into.push(next);
                    let at = waiting.len();
                    waiting.extend(children(next));
                    waiting[at..].reverse();
                }
            }
            // Found for all values together.
            Step::Pick(_) => {}
            Step::Filter(filter) => {
                for item in value.as_array().into_iter().flatten() {
                    self.spend(1)?;
                    if self.holds(filter, item)? {
                        into.push(item);
                    }
                }
            }
        }
        Ok(())
    }

    fn holds(&mut self, filter: &Filter, item: &'v Value) -> Result<bool, EvalError> {
        let left = self.operand(&filter.left, item)?;
        let Some((comparison, right)) = &filter.compared else { return Ok(!left.is_empty()) };
        let right = self.operand(right, item)?;
        self.spend(left.len().saturating_mul(right.len()))?;
        Ok(left.iter().any(|left| right.iter().any(|right| compare(*comparison, left, right))))
    }

    fn operand(&mut self, operand: &Operand, item: &'v Value) -> Result<Vec<Value>, EvalError> {
        match operand {
            Operand::Value(value) => Ok(vec![value.clone()]),
            Operand::Path(path) => {
                let found = self.find(path, item)?;
                // What is not a simple value equals nothing, but it is there.
                let simple = |value: &&Value| match value {
                    Value::Array(_) => Value::Array(Vec::new()),
                    Value::Object(_) => Value::Object(serde_json::Map::new()),
                    simple => (*simple).clone(),
                };
                Ok(found.iter().map(simple).collect())
            }
        }
    }
}

fn children<'v>(value: &'v Value) -> Box<dyn Iterator<Item = &'v Value> + 'v> {
    match value {
        Value::Array(items) => Box::new(items.iter()),
        Value::Object(fields) => Box::new(fields.values()),
        _ => Box::new(std::iter::empty()),
    }
}

fn picked<'v>(pick: &Pick, value: &'v Value, into: &mut Vec<&'v Value>) {
    match (pick, value) {
        (Pick::Name(name), _) => into.extend(value.get(name)),
        (Pick::Item(number), Value::Array(items)) => {
            into.extend(place(*number, items.len()).and_then(|index| items.get(index)));
        }
        (Pick::Slice { from, to, step }, Value::Array(items)) => {
            let clamp = |number: i64| match usize::try_from(number) {
                Ok(index) => index.min(items.len()),
                Err(_) => place(number, items.len()).unwrap_or(0),
            };
            let (from, to) = (from.map_or(0, clamp), to.map_or(items.len(), clamp));
            into.extend(items.get(from..to).unwrap_or_default().iter().step_by(*step));
        }
        (Pick::Item(_) | Pick::Slice { .. }, _) => {}
    }
}

/// The index that a number means in a list of this length.
fn place(number: i64, len: usize) -> Option<usize> {
    match usize::try_from(number) {
        Ok(index) => Some(index),
        Err(_) => len.checked_sub(usize::try_from(number.unsigned_abs()).ok()?),
    }
}

fn compare(comparison: Comparison, left: &Value, right: &Value) -> bool {
    use std::cmp::Ordering;
    let order = match (left, right) {
        (Value::Number(left), Value::Number(right)) => {
            left.as_f64().zip(right.as_f64()).and_then(|(left, right)| left.partial_cmp(&right))
        }
        (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
        (Value::Bool(left), Value::Bool(right)) => Some(left.cmp(right)),
        _ => None,
    };
    match comparison {
        Comparison::Equal => order == Some(Ordering::Equal),
        Comparison::Unequal => order != Some(Ordering::Equal),
        Comparison::Less => order == Some(Ordering::Less),
        Comparison::LessOrEqual => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        Comparison::Greater => order == Some(Ordering::Greater),
        Comparison::GreaterOrEqual => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
    }
}
