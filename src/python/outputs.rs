//! Results of a forward pass as Python's objects.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::convert::{copied, to_numpy};
use super::core_array::CoreArray;
use super::enter::to_py_err;
use crate::config::SparseMixerConfig;
use crate::error::Error;
use crate::network::{LayerMetrics, Outputs, RequestedOutputs, RoutingRecord};

/// The named outputs; `None` stands for those of TensorFlow's class.
pub fn requested(names: Option<&[String]>, check_finite: bool) -> PyResult<RequestedOutputs> {
    let mut requested = RequestedOutputs { check_finite, ..RequestedOutputs::default() };
    let Some(names) = names else {
        let (sequence_output, pooled_output, encoder_outputs) = (true, true, true);
        return Ok(RequestedOutputs { sequence_output, pooled_output, encoder_outputs, ..requested });
    };
    for name in names {
        *match name.as_str() {
            "sequence_output" => &mut requested.sequence_output,
            "pooled_output" => &mut requested.pooled_output,
            "encoder_outputs" => &mut requested.encoder_outputs,
            "routing" => &mut requested.routing,
            _ => {
                let known = "'sequence_output', 'pooled_output', 'encoder_outputs' or 'routing'";
                return Err(to_py_err(Error::value("outputs", format!("got {name:?}, expected {known}"))));
            }
        } = true;
    }
    Ok(requested)
}

/// The requested outputs by name.
pub fn to_python<'py>(
    py: Python<'py>,
    results: Outputs<f32>,
    requested: RequestedOutputs,
    batch: usize,
    config: &SparseMixerConfig,
) -> PyResult<Bound<'py, PyDict>> {
    let (seq, hidden) = (results.seq, config.hidden_size);
    let dict = PyDict::new(py);
    let shape = [batch, results.rows, hidden];
    let mut last = results.sequence_output;
    if requested.sequence_output {
        // Each under its name is an array of its own: whoever writes to one does not change the other.
        let values = match &last {
            Some(values) if requested.encoder_outputs => {
                Some(copied("sequence_output", values.len(), values.iter().copied())?)
            }
            _ => last.take(),
        };
        if let Some(values) = values {
            dict.set_item("sequence_output", to_numpy(py, values, &shape)?)?;
        }
    }
    if let Some(values) = results.pooled_output {
        dict.set_item("pooled_output", to_numpy(py, values, &[batch, hidden])?)?;
    }
    if requested.encoder_outputs {
        let list = PyList::empty(py);
        for values in results.encoder_outputs {
            list.append(to_numpy(py, values, &[batch, seq, hidden])?)?;
        }
        if let Some(last) = last {
            list.append(to_numpy(py, last, &shape)?)?;
        }
        dict.set_item("encoder_outputs", list)?;
    }
    if requested.routing {
        let records = results.routing.into_iter().map(|record| routing(py, record, config.num_experts));
        dict.set_item("routing", records.collect::<PyResult<Vec<_>>>()?)?;
    }
    Ok(dict)
}

/// Sequence and pooled output as arrays of the core, as far as there are any.
pub fn in_core<'py>(
    py: Python<'py>,
    results: Outputs<f32>,
    batch: usize,
    config: &SparseMixerConfig,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    let hidden = config.hidden_size;
    if let Some(values) = results.sequence_output {
        dict.set_item("sequence_output", CoreArray::new(values, &[batch, results.rows, hidden]))?;
    }
    if let Some(values) = results.pooled_output {
        dict.set_item("pooled_output", CoreArray::new(values, &[batch, hidden]))?;
    }
    Ok(dict)
}

fn routing<'py>(py: Python<'py>, record: RoutingRecord<f32>, experts: usize) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    // Empty slots become -1.
    let indices: Vec<i32> = record.indices.into_iter().map(|index| index as i32).collect();
    dict.set_item("indices", to_numpy(py, indices, &[record.groups, experts, record.slots])?)?;
    let shape = [record.groups, record.tokens, experts];
    dict.set_item("probabilities", to_numpy(py, record.probabilities, &shape)?)?;
    Ok(dict)
}

/// Name of a metric, and where a layer keeps it.
type Column = (&'static str, fn(&LayerMetrics<f32>) -> f32);

/// The auxiliary values: one array per metric, the layers that they belong to, and what to add to a training loss.
pub fn aux_to_python<'py>(
    py: Python<'py>,
    metrics: &[LayerMetrics<f32>],
    config: &SparseMixerConfig,
) -> PyResult<Bound<'py, PyDict>> {
    let columns: [Column; 6] = [
        ("unscaled_router_z_loss", |m| m.unscaled_router_z_loss),
        ("router_z_loss", |m| m.router_z_loss),
        ("load_balancing_loss", |m| m.load_balancing_loss),
        ("fraction_tokens_left_behind", |m| m.fraction_tokens_left_behind),
        ("router_confidence", |m| m.router_confidence),
        ("expert_usage", |m| m.expert_usage),
    ];
    let dict = PyDict::new(py);
    for (name, value) in columns {
        dict.set_item(name, to_numpy(py, metrics.iter().map(value).collect(), &[metrics.len()])?)?;
    }
    let loads = metrics.iter().flat_map(|m| &m.expert_load).copied().collect();
    dict.set_item("expert_load", to_numpy(py, loads, &[metrics.len(), config.num_experts])?)?;
    let factor = config.auxiliary_loss_factor as f32;
    let total: f32 = metrics.iter().map(|m| m.router_z_loss + factor * m.load_balancing_loss).sum();
    dict.set_item("total", to_numpy(py, vec![total], &[])?)?;
    // An empty batch has no metrics.
    let layers = (0..config.num_layers).filter(|&layer| config.is_moe(layer)).take(metrics.len());
    dict.set_item("moe_layers", to_numpy(py, layers.map(|layer| layer as i64).collect(), &[metrics.len()])?)?;
    Ok(dict)
}
