//! Slots with generation-checked keys, so that a key of a closed socket never reaches the socket that reuses its slot.

/// Generations have 24 bits, so that a key fits an operation's 64 bits of user data together with its kind.
const GENERATIONS: u32 = 1 << 24;

/// Names a stream, listener or watched descriptor of one reactor. A key whose socket was closed names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SocketKey {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

/// Storage that only grows, and reuses its slots.
pub(crate) struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
        }
    }

    pub(crate) fn insert(&mut self, value: T) -> SocketKey {
        if let Some(index) = self.free.pop()
            && let Some(entry) = self.entries.get_mut(index as usize)
        {
            entry.value = Some(value);
            return SocketKey {
                index,
                generation: entry.generation,
            };
        }
        // A process cannot have four billion descriptors, so the index always fits.
        let index = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        self.entries.push(Entry {
            generation: 0,
            value: Some(value),
        });
        SocketKey { index, generation: 0 }
    }

    pub(crate) fn get(&self, key: SocketKey) -> Option<&T> {
        let entry = self.entries.get(key.index as usize)?;
        if entry.generation == key.generation {
            entry.value.as_ref()
        } else {
            None
        }
    }

    pub(crate) fn get_mut(&mut self, key: SocketKey) -> Option<&mut T> {
        let entry = self.entries.get_mut(key.index as usize)?;
        if entry.generation == key.generation {
            entry.value.as_mut()
        } else {
            None
        }
    }

    pub(crate) fn remove(&mut self, key: SocketKey) -> Option<T> {
        let entry = self.entries.get_mut(key.index as usize)?;
        if entry.generation != key.generation {
            return None;
        }
        let value = entry.value.take()?;
        entry.generation = (entry.generation + 1) % GENERATIONS;
        self.free.push(key.index);
        Some(value)
    }

    /// Takes everything out.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.free.clear();
        self.entries.drain(..).filter_map(|entry| entry.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_removed_values_find_nothing() {
        let mut slab = Slab::new();
        let first = slab.insert(1);
        let second = slab.insert(2);
        assert_eq!(slab.remove(first), Some(1));
        let third = slab.insert(3);
        assert_eq!(third.index, first.index);
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(third), Some(&3));
        assert_eq!(slab.get_mut(second), Some(&mut 2));
        assert_eq!(slab.drain().collect::<Vec<_>>(), [3, 2]);
    }
}
