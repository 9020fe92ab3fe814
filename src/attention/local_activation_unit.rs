//! DIN's local activation unit: how much each behaviour of a user has to do with a candidate.

use std::path::Path;

use ndarray::{Array1, Array2, ArrayView1, Axis, Ix1, Ix2, concatenate};

use super::weights::{self, Weights};
use crate::device::Device;
use crate::kernels::activation_unit as kernel;
use crate::kernels::matmul;
use crate::tensor::Tensor;
use crate::{Error, Result};

const PLACE: &str = "local_activation_unit";

/// The activation of a hidden layer, with what was learned of each of its units.
#[derive(Debug, Clone)]
pub enum Activation {
    /// 1 / (1 + e^-x): the first published code of DIN.
    Sigmoid,
    /// x above 0, alpha x below.
    Prelu {
        /// (units).
        alpha: Array1<f32>,
    },
    /// p x + (1 - p) alpha x with p = sigmoid((x - mean) / sqrt(variance + epsilon)).
    Dice {
        /// (units), that of training.
        mean: Array1<f32>,
        /// (units), that of training; at least 0.
        variance: Array1<f32>,
        /// (units).
        alpha: Array1<f32>,
        /// Above 0: 1e-8 in the paper, 1e-9 in its authors' code.
        epsilon: f32,
    },
}

/// Which [`Activation`] a file's weights are for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ActivationKind {
    /// [`Activation::Sigmoid`].
    Sigmoid,
    /// [`Activation::Prelu`].
    Prelu,
    /// [`Activation::Dice`].
    Dice {
        /// 1e-8 in the paper, 1e-9 in its authors' code.
        epsilon: f32,
    },
}

/// A hidden layer of an [`ActivationUnitWeights`].
#[derive(Debug, Clone)]
pub struct HiddenLayer {
    /// [in, units]; of the first layer in is 4 d, for q, k, q - k and q * k, in this order.
    pub weights: Array2<f32>,
    /// (units).
    pub bias: Array1<f32>,
    /// What follows.
    pub activation: Activation,
}

/// The weights of a [`local_activation_unit`] on a device.
#[derive(Debug, Clone)]
pub struct ActivationUnitWeights {
    dim: usize,
    /// Wq + Wd, [d, units].
    query: Tensor<f32, Ix2>,
    /// Wk - Wd, and below it Wp: [2 d, units].
    key: Tensor<f32, Ix2>,
    /// Those of the second hidden layer and the ones after it.
    deeper: Vec<Tensor<f32, Ix2>>,
    /// Bias, alpha, and what x is multiplied by and what is added before Dice's sigmoid, of each unit of each layer: [units, 4].
    units: Vec<Tensor<f32, Ix2>>,
    kinds: Vec<kernel::Kind>,
    /// The last layer's weights, then its bias.
    last: Tensor<f32, Ix1>,
}

impl ActivationUnitWeights {
    /// One hidden layer or more, then `last` [units of the last hidden layer] and `last_bias`; all finite.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Domain`] name what does not fit (`W1` is the first layer's weights); [`Error::Argument`] for no layer or an epsilon
    /// that is not above 0; the device's own.
    pub fn new(device: &Device, layers: &[HiddenLayer], last: &ArrayView1<'_, f32>, last_bias: f32) -> Result<Self> {
        let shape = |quantity, expected, found: &[usize]| Error::Shape {
            place: PLACE,
            quantity,
            expected,
            found: found.to_vec(),
        };
        let argument = |quantity, expected: &str, found| {
            Err(Error::Argument { place: PLACE, quantity, expected: expected.into(), found })
        };
        let Some(first) = layers.first() else { return argument("hidden layers", "at least 1", "0".into()) };
        let dim = first.weights.nrows() / 4;
        if !first.weights.nrows().is_multiple_of(4) {
            return Err(shape("W1", "[4 d, units]".into(), first.weights.shape()));
        }
        let (mut units, mut kinds, mut inputs) = (Vec::new(), Vec::new(), 4 * dim);
        for (index, layer) in layers.iter().enumerate() {
            let name = |first, second, deeper| *[first, second].get(index).unwrap_or(&deeper);
            let count = layer.weights.ncols();
            if layer.weights.nrows() != inputs || count == 0 {
                let expected = format!("[{inputs}, units] with units above 0");
                return Err(shape(name("W1", "W2", "W of a deeper layer"), expected, layer.weights.shape()));
            }
            inputs = count;
            weights::finite(PLACE, name("W1", "W2", "W of a deeper layer"), layer.weights.iter())?;
            let vector = |quantity, vector: &Array1<f32>| {
                if vector.len() != count {
                    return Err(shape(quantity, format!("[{count}], one for each unit"), vector.shape()));
                }
                weights::finite(PLACE, quantity, vector.iter())
            };
            vector(name("b1", "b2", "b of a deeper layer"), &layer.bias)?;
            let mut table = Array2::zeros((count, 4));
            table.column_mut(0).assign(&layer.bias);
            kinds.push(match &layer.activation {
                Activation::Sigmoid => kernel::Kind::Sigmoid,
                Activation::Prelu { alpha } => {
                    vector(name("alpha1", "alpha2", "alpha of a deeper layer"), alpha)?;
                    table.column_mut(1).assign(alpha);
                    kernel::Kind::Prelu
                }
                Activation::Dice { mean, variance, alpha, epsilon } => {
                    vector(name("alpha1", "alpha2", "alpha of a deeper layer"), alpha)?;
                    vector(name("mean1", "mean2", "mean of a deeper layer"), mean)?;
                    vector(name("variance1", "variance2", "variance of a deeper layer"), variance)?;
                    if !(epsilon.is_finite() && *epsilon > 0.0) {
                        return argument("epsilon", "finite, above 0", epsilon.to_string());
                    }
                    if let Some(index) = variance.iter().position(|&variance| variance < 0.0) {
                        let (quantity, found) = ("variance", variance[index].to_string());
                        return Err(Error::Domain { place: PLACE, quantity, index, expected: "at least 0", found });
                    }
                    table.column_mut(1).assign(alpha);
                    for (unit, (&mean, &variance)) in mean.iter().zip(variance).enumerate() {
                        let factor = 1.0 / (f64::from(variance) + f64::from(*epsilon)).sqrt();
                        table[[unit, 2]] = factor as f32;
                        table[[unit, 3]] = mean;
                    }
                    kernel::Kind::Dice
                }
            });
            units.push(device.tensor_from(table)?);
        }
        if last.len() != inputs {
            return Err(shape("the last W", format!("[{inputs}], one for each unit"), last.shape()));
        }
        weights::finite(PLACE, "the last W", last.iter().chain([&last_bias]))?;
        let part = |index: usize| first.weights.slice(ndarray::s![index * dim..(index + 1) * dim, ..]);
        let query = &part(0) + &part(2);
        let key = &part(1) - &part(2);
        let Ok(key) = concatenate(Axis(0), &[key.view(), part(3)]) else { unreachable!("both have as many columns") };
        Ok(Self {
            dim,
            query: device.tensor_from(query)?,
            key: device.tensor_from(key)?,
            deeper: layers[1..].iter().map(|layer| device.tensor(&layer.weights)).collect::<Result<_>>()?,
            units,
            kinds,
            last: device.tensor_from(last.iter().copied().chain([last_bias]).collect())?,
        })
    }

    /// The layers `W1` [4 d, units] and `b1`, `W2` and `b2` and so on below `prefix` in a `.safetensors` file; the last one, [units, 1], has no
    /// activation. PReLU's `alpha1` and Dice's `alpha1`, `mean1` and `variance1` go with the first layer.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] names the tensor that is missing or of the wrong shape; as [`ActivationUnitWeights::new`].
    pub fn load(path: impl AsRef<Path>, prefix: &str, activation: ActivationKind, device: &Device) -> Result<Self> {
        Self::from_bytes(&weights::read(path.as_ref())?, prefix, activation, device)
    }

    /// [`ActivationUnitWeights::load`] of a file's bytes.
    ///
    /// # Errors
    /// As [`ActivationUnitWeights::load`].
    pub fn from_bytes(bytes: &[u8], prefix: &str, activation: ActivationKind, device: &Device) -> Result<Self> {
        let file = Weights::new("weights of local_activation_unit", bytes, prefix)?;
        let mut layers = Vec::new();
        let mut number = 1;
        while number == 1 || file.has(&format!("W{}", number + 1)) {
            let vector = |name: &str| file.get::<Ix1>(&format!("{name}{number}"));
            layers.push(HiddenLayer {
                weights: file.get::<Ix2>(&format!("W{number}"))?,
                bias: vector("b")?,
                activation: match activation {
                    ActivationKind::Sigmoid => Activation::Sigmoid,
                    ActivationKind::Prelu => Activation::Prelu { alpha: vector("alpha")? },
                    ActivationKind::Dice { epsilon } => Activation::Dice {
                        mean: vector("mean")?,
                        variance: vector("variance")?,
                        alpha: vector("alpha")?,
                        epsilon,
                    },
                },
            });
            number += 1;
        }
        let (last, bias) = (file.get::<Ix2>(&format!("W{number}"))?, file.get::<Ix1>(&format!("b{number}"))?);
        if last.ncols() != 1 || bias.len() != 1 {
            let reason = format!(
                "the last layer, W{number} and b{number}, has shapes {:?} and {:?}, expected [units, 1] and [1]",
                last.shape(),
                bias.shape()
            );
            return Err(Error::Format { what: "weights of local_activation_unit", reason });
        }
        Self::new(device, &layers, &last.column(0), bias[0]).map_err(|error| file.explain(error))
    }

    /// Elements of a candidate and of a behaviour.
    pub fn dim(&self) -> usize {
        self.dim
    }
}

/// What a [`local_activation_unit`] does with its weights. The default is DIN's: it sums by them as they are.
#[derive(Debug, Clone, Copy, Default)]
pub struct ActivationUnitOptions {
    softmax: Option<f32>,
    weights: bool,
}

impl ActivationUnitOptions {
    /// As DIN has it.
    pub fn new() -> Self {
        Self::default()
    }

    /// The weights of a candidate's behaviours become softmax(scale * weights); finite. DIN's authors tried 1 / sqrt(d).
    pub fn softmax(mut self, scale: f32) -> Self {
        self.softmax = Some(scale);
        self
    }

    /// Also return the weights.
    pub fn weights(mut self) -> Self {
        self.weights = true;
        self
    }
}

/// What a [`local_activation_unit`] gives.
#[derive(Debug, Clone)]
pub struct Activated {
    /// [candidates, d].
    pub output: Tensor<f32, Ix2>,
    /// The weight of each behaviour, (total), if they were asked for.
    pub weights: Option<Tensor<f32, Ix1>>,
}

/// sum_t w_t k_t over the behaviours of each candidate, with w_t = MLP([q, k_t, q - k_t, q * k_t]).
///
/// * `candidates` q [candidates, d]; `behaviours` k [total, d], those of candidate `i` at `offsets[i]..offsets[i + 1]`; all finite
/// * `offsets`: from 0 to total, never falling, candidates + 1 of them; a candidate with no behaviours gets zeros
/// * the first layer is (Wq + Wd) q once a candidate, and (Wk - Wd) k + Wp (q * k) a behaviour: nothing is concatenated
/// * an element is within 1e-5 of its row's sum of |w_t k_t|, for layers of some hundred units
///
/// # Errors
/// [`Error::Shape`], [`Error::Argument`], [`Error::DeviceMismatch`]; [`Error::Domain`] names the first candidate whose output is not finite because an
/// element is not, or because a sum overflows: on a GPU at the wait; [`Error::TooLarge`] where the behaviours of one candidate exceed a binding.
///
/// Source: Zhou et al. 2018, DIN (section 4.3).
pub fn local_activation_unit(
    candidates: &Tensor<f32, Ix2>,
    behaviours: &Tensor<f32, Ix2>,
    offsets: &[usize],
    weights: &ActivationUnitWeights,
    options: &ActivationUnitOptions,
) -> Result<Activated> {
    let device = candidates.device();
    device.same(PLACE, "behaviours", behaviours.device())?;
    device.same(PLACE, "weights", weights.query.device())?;
    let (rows, total) = (candidates.shape()[0], behaviours.shape()[0]);
    for (quantity, tensor) in [("candidates", candidates), ("behaviours", behaviours)] {
        if tensor.shape()[1] != weights.dim {
            let expected = format!("[.., {}], as the weights", weights.dim);
            return Err(Error::Shape { place: PLACE, quantity, expected, found: tensor.shape().to_vec() });
        }
    }
    let argument = |quantity, expected, found| Err(Error::Argument { place: PLACE, quantity, expected, found });
    let fine = offsets.first() == Some(&0) && offsets.last() == Some(&total) && offsets.is_sorted();
    if !fine || offsets.len() != rows + 1 {
        let expected = format!("{} offsets from 0 to {total} that never fall", rows + 1);
        let ends = (offsets.first().copied().unwrap_or(0), offsets.last().copied().unwrap_or(0));
        return argument("offsets", expected, format!("{} from {} to {}", offsets.len(), ends.0, ends.1));
    }
    if let Some(scale) = options.softmax.filter(|scale| !scale.is_finite()) {
        return argument("softmax", "a finite scale".into(), scale.to_string());
    }
    let problem = kernel::Problem {
        offsets,
        softmax: options.softmax,
        key: &weights.key,
        deeper: &weights.deeper,
        units: &weights.units,
        kinds: &weights.kinds,
        last: &weights.last,
    };
    let base = matmul(candidates, &weights.query, false, false)?;
    let (output, weights) = match device {
        Device::Cpu => kernel::on_cpu(&problem, candidates, behaviours, &base)?,
        Device::Gpu(_) => kernel::on_gpu(&problem, candidates, behaviours, &base)?,
    };
    Ok(Activated { output, weights: options.weights.then_some(weights) })
}
