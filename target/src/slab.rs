//! Places with generation-checked keys: a key to something that left finds nothing, also when its place was reused.

/// A place in a [`Slab`] and which of its tenants is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    index: u32,
    generation: u32,
}

const INDEX_BITS: u32 = 24;

impl Key {
    /// The place: small numbers, reused.
    pub(crate) fn index(self) -> usize {
        self.index as usize
    }

    /// The key in 48 bits: 24 of index, 24 of generation.
    pub(crate) fn to_bits(self) -> u64 {
        u64::from(self.generation) << INDEX_BITS | u64::from(self.index)
    }

    /// The key that [`Key::to_bits`] made.
    pub(crate) fn from_bits(bits: u64) -> Self {
        let mask = (1 << INDEX_BITS) - 1;
        let part = |value: u64| u32::try_from(value & mask).unwrap_or(0);
        Self {
            index: part(bits),
            generation: part(bits >> INDEX_BITS),
        }
    }
}

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    tenant: Option<T>,
}

/// Values in places that are reused.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
    len: usize,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            len: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Takes a free place, to be filled with [`Slab::fill`]; `None` when all 16 million are taken.
    pub(crate) fn reserve(&mut self) -> Option<Key> {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = u32::try_from(self.places.len())
                    .ok()
                    .filter(|index| *index < 1 << INDEX_BITS)?;
                self.places.push(Place {
                    generation: 0,
                    tenant: None,
                });
                index
            }
        };
        self.places.get(index as usize).map(|place| Key {
            index,
            generation: place.generation,
        })
    }

    /// Puts a value into the place that [`Slab::reserve`] gave.
    pub(crate) fn fill(&mut self, key: Key, value: T) {
        if let Some(place) = self.places.get_mut(key.index as usize)
            && place.generation == key.generation
        {
            self.len += usize::from(place.tenant.is_none());
            place.tenant = Some(value);
        }
    }

    /// Puts a value into a free place; `None` when all are taken.
    pub(crate) fn insert(&mut self, value: T) -> Option<Key> {
        let key = self.reserve()?;
        self.fill(key, value);
        Some(key)
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        let place = self.places.get(key.index as usize)?;
        place
            .tenant
            .as_ref()
            .filter(|_| place.generation == key.generation)
    }

    /// Whatever is in a place now.
    pub(crate) fn at_mut(&mut self, index: usize) -> Option<&mut T> {
        self.places.get_mut(index)?.tenant.as_mut()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.places.iter_mut().filter_map(|place| place.tenant.as_mut())
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let place = self.places.get_mut(key.index as usize)?;
        if place.generation == key.generation {
            place.tenant.as_mut()
        } else {
            None
        }
    }

    /// Frees a place, whether it was filled or not, and returns what was in it.
    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let place = self
            .places
            .get_mut(key.index as usize)
            .filter(|place| place.generation == key.generation)?;
        let tenant = place.tenant.take();
        place.generation = (place.generation + 1) & ((1 << INDEX_BITS) - 1);
        self.free.push(key.index);
        self.len -= usize::from(tenant.is_some());
        tenant
    }

    /// Keys of everything in the slab now.
    pub(crate) fn keys(&self) -> Vec<Key> {
        let keys = self
            .places
            .iter()
            .zip(0_u32..)
            .filter(|(place, _)| place.tenant.is_some());
        keys.map(|(place, index)| Key {
            index,
            generation: place.generation,
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_key_does_not_find_the_next_tenant() {
        let mut slab = Slab::new();
        let first = slab.reserve().unwrap();
        slab.fill(first, "first");
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.reserve().unwrap();
        slab.fill(second, "second");
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(Key::from_bits(second.to_bits()), second);
        assert_eq!(slab.keys(), vec![second]);
        assert_eq!(slab.len(), 1);
    }
}
