//! A table of embeddings: one row of values per id. Source: the Model Garden's `OnDeviceEmbedding`, `PositionEmbedding`.

use crate::kernels::{Isa, Real, axpy};
use crate::params::{Gradients, Table, TableKey, WeightList, Weights};

/// `rows` rows of `width` values.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddingTable {
    key: TableKey,
    rows: usize,
    width: usize,
}

impl EmbeddingTable {
    /// Declares the table `name`.
    pub fn new(list: &mut WeightList, name: &str, rows: usize, width: usize) -> Self {
        EmbeddingTable { key: list.table(name, rows, width), rows, width }
    }

    /// Number of rows.
    pub fn rows(self) -> usize {
        self.rows
    }

    /// Values per row.
    pub fn width(self) -> usize {
        self.width
    }

    /// The key of the table.
    pub fn key(self) -> TableKey {
        self.key
    }

    /// The rows.
    pub fn table<R: Real>(self, weights: &Weights<R>) -> &Table<R> {
        weights.table(self.key)
    }

    /// Adds the gradients of looked-up rows, each with its id, to those of the table, one after the other.
    pub fn add_gradients<'d, R: Real>(
        self,
        isa: Isa,
        looked_up: impl Iterator<Item = (usize, &'d [R])>,
        gradients: &mut Gradients<R>,
    ) {
        let Some(table) = gradients.if_requested(self.key) else { return };
        let table = table.row_major();
        for (id, row) in looked_up {
            axpy(isa, &mut table[id * self.width..][..self.width], R::ONE, row);
        }
    }
}
