// What the kernels of the model's rows share. Values are float32 rows in one workspace; places in units of 4 floats.

struct Step {
  x: u32,           // the input's first row
  ldX: u32,         // from row to row
  out: u32,
  ldOut: u32,
  weight: u32,      // the weight's start, in the units of its form's binding
  k: u32,           // channels of the input
  other: u32,       // a second operand's first row; its rows are as far apart as the output's
  epsilon: f32,
  quads: u32,       // groups of 4 outputs
  gate: u32,        // a second weight's start
  norm: u32,        // where the channels' factors start by which the operand is normalised
  unused: u32,
}
/// Products of the same rows go together.
@group(0) @binding(0) var<uniform> steps: array<Step, MOST_STEPS>;
const MOST_STEPS = 3u;
var<private> step: Step;
@group(0) @binding(2) var<storage, read_write> values: array<vec4<f32>>;

/// 4 rows of a matrix by 8 channels: columns hold a channel's 4 rows; value = scale * code + minimum.
struct Unit { low: mat4x4<f32>, high: mat4x4<f32>, scale: vec4<f32>, minimum: vec4<f32> }
