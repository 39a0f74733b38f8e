// Writes records: of exact slots (encode), or of an older record under coarser tiers (recode). A half whose bits do not change moves
// bit for bit; another is quantised: nearest levels of x / rms(x), and the scale |x|^2 / <x, levels>, which keeps <decoded, x> = |x|^2.
// PLAIN: by the largest of each 32 channels instead, as GGML's q8_0 and q4_0 (quantisePlain in cache-math.ts); no mean, and codes only ever move.
//
// Dispatch [jobs]; 128 threads: one a token, then one for each half block of 4 tokens.

struct Job {
  source: u32,      // the exact part's keys at the first slot, as a word index; or the older record, in units of 16 bytes
  values: u32,      // the exact part's values as a word index; not used for a record
  bits: u32,        // 16 or 32: exact slots; 0: a record
  tokens: u32,      // 1..128
  tiers: u32,       // word index into `tiers`: u8 [tokens], a tier id or DROP
  target_: u32,     // the new record, in units of 16 bytes; lies apart from all sources
  massFrom: u32,    // index of the slots' or the older cells' first u16 mass; 0: none
  massTo: u32,      // word index of the new cells' mass; 0: none
}

@group(0) @binding(0) var<storage, read> jobs: array<Job>;
@group(0) @binding(1) var<storage, read> tiers: array<u32>;
@group(0) @binding(2) var<storage, read_write> words: array<u32>;      // the cache

var<workgroup> tierOf: array<u32, 128>;
var<workgroup> oldTierOf: array<u32, 128>;
var<workgroup> counts: array<atomic<u32>, 16>;
var<workgroup> oldCounts: array<atomic<u32>, 16>;
var<workgroup> cellOf: array<u32, 128>;       // within its tier
var<workgroup> oldCellOf: array<u32, 128>;
var<workgroup> mean: array<f32, HEAD_DIM>;
var<workgroup> meanScale: u32;                // binary16 bits
var<workgroup> squares: array<vec2<f32>, 128>;
/// Binary16 bits and values of the scales' bases, keys and values.
var<workgroup> baseBits: vec2<u32>;
var<workgroup> bases: vec2<f32>;

fn byteAt(at: u32, byte: u32) -> u32 { return (words[at * 4u + byte / 4u] >> ((byte & 3u) * 8u)) & 255u; }

/// Counts of present tiers, a byte each, in ascending order, and their mask.
struct Present { mask: u32, counts: vec3<u32> }
fn presentOf(old: bool) -> Present {
  var p = Present();
  var i = 0u;
  for (var id = 0u; id < TIER_COUNT; id++) {
    let n = select(atomicLoad(&counts[id]), atomicLoad(&oldCounts[id]), old);
    if (n > 0u) {
      p.mask |= 1u << id;
      p.counts[i >> 2u] |= n << ((i & 3u) * 8u);
      i++;
    }
  }
  return p;
}
/// The group of a tier, codes' places from the buffer's start, scales' from the record's. `firstCell` counts padded cells before it.
struct Place { group: Group, firstCell: u32 }
fn placeOf(record: u32, tokens: u32, tier: u32, old: bool) -> Place {
  let p = presentOf(old);
  let parts = partsOf(p.mask, p.counts, tokens);
  var scales = parts.scales;
  var codes = record + parts.codes;
  var cell = 0u;
  var left = p.mask;
  var i = 0u;
  while (left != 0u && firstTrailingBit(left) < tier) {
    let g = groupAt(firstTrailingBit(left), countOf(p.counts, i), scales, codes);
    scales = g.scaleEnd;
    codes = g.codeEnd;
    cell += pad4(g.n);
    left &= left - 1u;
    i++;
  }
  return Place(groupAt(tier, countOf(p.counts, i), scales, codes), cell);
}

/// Where a token's keys or values come from: floats at `at` (in words, from the token's first channel on), or codes in the half block at `at`
/// (units of 16 bytes) with a scale as it is stored; PLAIN: with the index of its first scale, in 16 bits.
struct Source { bits: u32, at: u32, cell: u32, scale: u32 }
fn sourceOf(job: Job, token: u32, values: bool) -> Source {
  if (job.bits != 0u) {
    return Source(job.bits, select(job.source, job.values, values) + token * HEAD_DIM * job.bits / 32u, 0u, 0u);
  }
  let g = placeOf(job.source, job.tokens, oldTierOf[token], true).group;
  let cell = oldCellOf[token];
  let bits = select(g.kBits, g.vBits, values);
  let start = select(g.k, g.v, values);
  if (bits > 8u) { return Source(bits, start * 4u + cell * HEAD_DIM * bits / 32u, cell, 0u); }
  let scales = job.source * 4u + select(g.kScale, g.vScale, values) / 4u;
  if (PLAIN) { return Source(bits, start + cell / 4u * blockVectors(bits), cell, scales * 2u + cell * PLAIN_GROUPS); }
  var scale = (words[scales + cell / 4u] >> ((cell & 3u) * 8u)) & 255u;
  if (bits == 8u) { scale = (words[scales + cell / 2u] >> ((cell & 1u) * 16u)) & 0xffffu; }
  return Source(bits, start + cell / 4u * blockVectors(bits), cell, scale);
}
fn codeOf(s: Source, values: bool, channel: u32) -> u32 {
  let token = s.cell & 3u;
  let byte = select(token * 4u + (channel & 3u), (channel & 3u) * 4u + token, values);
  let chunk = channel / 4u;
  switch s.bits {
    case 8u: { return byteAt(s.at + chunk, byte); }
    case 4u: { return (byteAt(s.at + chunk / 2u, byte) >> ((chunk & 1u) * 4u)) & 15u; }
    case 1u: { return (byteAt(s.at + chunk / 8u, byte) >> (chunk & 7u)) & 1u; }
    default: {
      let low = (byteAt(s.at + chunk / 4u, byte) >> ((chunk & 3u) * 2u)) & 3u;
      if (s.bits == 2u) { return low; }
      return low | (((byteAt(s.at + (CHUNKS + 3u) / 4u + chunk / 8u, byte) >> (chunk & 7u)) & 1u) << 2u);
    }
  }
}
fn scaleOf(s: Source, values: bool) -> f32 {
  if (s.bits == 8u) { return unpack2x16float(s.scale).x; }
  return scalesOf(vec4(s.scale), s.bits, select(bases.x, bases.y, values)).x;
}
/// The nearest code of a standard deviation.
fn scaleCode(deviation: f32, base: f32) -> u32 {
  if (!(base > 0.0)) { return 0u; }
  let ratio = deviation / base;
  if (ratio < 0.5 * exp2(-254.0 / 32.0)) { return 0u; }
  return u32(clamp(255.0 + round(32.0 * log2(ratio)), 1.0, 255.0));
}
/// A float source's value.
fn valueOf(s: Source, channel: u32) -> f32 {
  if (s.bits == 32u) { return bitcast<f32>(words[s.at + channel]); }
  let pair = unpack2x16float(words[s.at + channel / 2u]);
  return select(pair.x, pair.y, (channel & 1u) == 1u);
}

fn codeFor(bits: u32, x: f32, inverse: f32) -> u32 {
  if (bits == 8u) { return bitcast<u32>(i32(round(x * inverse))) & 255u; }
  let above = levelsBelow(bits, abs(x) * inverse);
  let half = 1u << (bits - 1u);
  return select(half - 1u - above, half + above, x > 0.0);
}

/// Codes of 32 channels (or what is left) from `first` on take the place of their values in `x`. Returns the scale's binary16 bits.
fn quantisePlain(x: ptr<function, array<f32, HEAD_DIM>>, first: u32, bits: u32) -> u32 {
  let end = min(first + 32u, HEAD_DIM);
  var top = 0.0;
  for (var c = first; c < end; c++) { if (abs((*x)[c]) > abs(top)) { top = (*x)[c]; } }
  let d = select(top / -8.0, abs(top) / 127.0, bits == 8u);
  let inverse = select(1.0 / d, 0.0, d == 0.0);
  for (var c = first; c < end; c++) {
    let y = (*x)[c] * inverse;
    if (bits == 8u) {
      // Halves away from zero.
      (*x)[c] = f32(bitcast<u32>(i32(sign(y) * floor(abs(y) + 0.5))) & 255u);
    } else {
      (*x)[c] = min(15.0, floor(y + 8.5));
    }
  }
  return toF16(d);
}

/// Scales of 4 cells.
const SCALES = 4u * select(1u, PLAIN_GROUPS, PLAIN);

/// Writes 4 tokens' keys or values, `cells` of them there, and their scales.
fn writeBlock(job: Job, g: Group, values: bool, block: u32, tokens: vec4<u32>, cells: u32) {
  let bits = select(g.kBits, g.vBits, values);
  let at = (select(g.k, g.v, values) + block * blockVectors(bits)) * 4u;
  if (bits > 8u) {
    for (var t = 0u; t < cells; t++) {
      let s = sourceOf(job, tokens[t], values);
      let row = at + t * HEAD_DIM * bits / 32u;
      for (var c = 0u; c < HEAD_DIM; c += 2u) {
        let a = valueOf(s, c);
        let b = valueOf(s, c + 1u);
        if (bits == 16u) {
          words[row + c / 2u] = toF16(a) | (toF16(b) << 16u);
        } else {
          words[row + c] = bitcast<u32>(a);
          words[row + c + 1u] = bitcast<u32>(b);
        }
      }
    }
    return;
  }
  let vectors = blockVectors(bits);
  for (var i = 0u; i < vectors * 4u; i++) { words[at + i] = 0u; }
  var scales = array<u32, SCALES>();
  for (var t = 0u; t < cells; t++) {
    let s = sourceOf(job, tokens[t], values);
    let moves = s.bits == bits;
    var factor = 0.0;
    if (!PLAIN && s.bits <= 8u && !moves) { factor = scaleOf(s, values); }
    // What is quantised (keys relative to the mean), or the codes that move.
    var x = array<f32, HEAD_DIM>();
    for (var c = 0u; c < HEAD_DIM; c++) {
      if (s.bits > 8u) {
        x[c] = valueOf(s, c) - select(mean[c], 0.0, values);
      } else {
        let code = codeOf(s, values, c);
        x[c] = factor * levelOf(s.bits, code);
        if (moves) { x[c] = f32(code); }
      }
    }
    if (!PLAIN) { scales[t] = s.scale; }
    var inverse = 0.0;
    if (PLAIN) {
      for (var g = 0u; g < PLAIN_GROUPS; g++) {
        let held = s.scale + g;
        if (moves) {
          scales[t * PLAIN_GROUPS + g] = (words[held / 2u] >> ((held & 1u) * 16u)) & 0xffffu;
        } else {
          scales[t * PLAIN_GROUPS + g] = quantisePlain(&x, g * 32u, bits);
        }
      }
    } else if (!moves) {
      // Four partial sums, as the other backends' vectors have.
      var squares = vec4(0.0);
      var largest = 0.0;
      for (var c = 0u; c < HEAD_DIM; c += 4u) {
        let y = vec4(x[c], x[c + 1u], x[c + 2u], x[c + 3u]);
        squares += y * y;
        let m = abs(y);
        largest = max(largest, max(max(m.x, m.y), max(m.z, m.w)));
      }
      let xx = (squares.x + squares.y) + (squares.z + squares.w);
      scales[t] = 0u;
      // A vector of (almost) zeros has scale 0 and codes 0.
      if (!(xx >= 1e-30 && xx < 3.0e38)) { continue; }
      inverse = select(2.0 * unitOf(bits) / sqrt(xx / f32(HEAD_DIM)), 127.0 / largest, bits == 8u);
      var products = array<f32, 4>();
      for (var c = 0u; c < HEAD_DIM; c++) {
        let code = codeFor(bits, x[c], inverse);
        products[c & 3u] += x[c] * levelOf(bits, code);
        x[c] = f32(code);
      }
      let scale = xx / ((products[0] + products[1]) + (products[2] + products[3]));
      if (bits == 8u) { scales[t] = toF16(scale); } else { scales[t] = scaleCode(scale * unitOf(bits), select(bases.x, bases.y, values)); }
    }
    for (var c = 0u; c < HEAD_DIM; c++) {
      let code = u32(x[c]);
      let within = select(t * 4u + (c & 3u), (c & 3u) * 4u + t, values);
      let chunk = c / 4u;
      let lane = at + within / 4u;
      let shift = (within & 3u) * 8u;
      switch bits {
        case 8u: { words[lane + chunk * 4u] |= code << shift; }
        case 4u: { words[lane + chunk / 2u * 4u] |= code << (shift + (chunk & 1u) * 4u); }
        case 1u: { words[lane + chunk / 8u * 4u] |= code << (shift + (chunk & 7u)); }
        default: {
          words[lane + chunk / 4u * 4u] |= (code & 3u) << (shift + (chunk & 3u) * 2u);
          if (bits == 3u) {
            words[lane + ((CHUNKS + 3u) / 4u + chunk / 8u) * 4u] |= (code >> 2u) << (shift + (chunk & 7u));
          }
        }
      }
    }
  }
  let to = job.target_ * 4u + select(g.kScale, g.vScale, values) / 4u + block * scaleBytes(bits);
  if (PLAIN) {
    for (var i = 0u; i < SCALES / 2u; i++) { words[to + i] = scales[2u * i] | (scales[2u * i + 1u] << 16u); }
  } else if (bits < 8u) {
    words[to] = scales[0] | (scales[1] << 8u) | (scales[2] << 16u) | (scales[3] << 24u);
  } else {
    words[to] = scales[0] | (scales[1] << 16u);
    words[to + 1u] = scales[2] | (scales[3] << 16u);
  }
}

/// Twice the rms that these squares sum to, as binary16 rounded up.
fn baseOf(squares: f32) -> u32 {
  if (!(squares >= 1e-30 && squares < 3.0e38)) { return 0u; }
  let x = 2.0 * sqrt(squares / f32(HEAD_DIM));
  let h = toF16(x);
  return select(h, h + 1u, h < 0x7bffu && unpack2x16float(h).x < x);
}
/// Mass of a token where it was.
fn massOf(job: Job, token: u32) -> u32 {
  if (job.massFrom == 0u) { return 0u; }
  var at = token;
  if (job.bits == 0u) { at = placeOf(job.source, job.tokens, oldTierOf[token], true).firstCell + oldCellOf[token]; }
  at += job.massFrom;
  return (words[at / 2u] >> ((at & 1u) * 16u)) & 0xffffu;
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let job = jobs[id.x];
  let there = thread < job.tokens;
  let recodes = job.bits == 0u;
  // The older record's counts say where its map lies.
  if (recodes && thread == 0u) {
    let first = job.source * 4u;
    var left = words[first] & 0xffffu;
    let kinds = countOneBits(left);
    for (var i = 0u; i < kinds; i++) {
      atomicStore(&oldCounts[firstTrailingBit(left)], byteAt(job.source, 8u + i));
      left &= left - 1u;
    }
    meanScale = words[first + 1u] >> 16u;
    baseBits = vec2(words[first] >> 16u, words[first + 1u] & 0xffffu);
  }
  workgroupBarrier();
  let was = presentOf(true);
  let before = partsOf(was.mask, was.counts, job.tokens);
  if (there) {
    let tier = (tiers[job.tiers + thread / 4u] >> ((thread & 3u) * 8u)) & 255u;
    tierOf[thread] = tier;
    if (tier != DROP) { atomicAdd(&counts[tier], 1u); }
    if (recodes) {
      oldTierOf[thread] = firstTrailingBit(was.mask);
      if (before.map != 0u) { oldTierOf[thread] = (byteAt(job.source, before.map + thread / 2u) >> ((thread & 1u) * 4u)) & 15u; }
    }
  }
  // The mean of all tokens' keys, in order; a record keeps its own.
  for (var c = thread; c < HEAD_DIM; c += 128u) {
    if (PLAIN) {
      mean[c] = 0.0;
    } else if (recodes) {
      mean[c] = f32(bitcast<i32>(byteAt(job.source, before.mean + c) << 24u) >> 24u);
    } else {
      var sum = 0.0;
      for (var t = 0u; t < job.tokens; t++) { sum += valueOf(Source(job.bits, job.source + t * HEAD_DIM * job.bits / 32u, 0u, 0u), c); }
      mean[c] = sum / f32(job.tokens);
    }
  }
  workgroupBarrier();
  if (!recodes && thread == 0u) {
    var largest = 0.0;
    for (var c = 0u; c < HEAD_DIM; c++) { largest = max(largest, abs(mean[c])); }
    meanScale = toF16(largest / 127.0);
  }
  workgroupBarrier();
  // From here on the mean is its codes, then what they stand for.
  let meanStep = unpack2x16float(meanScale).x;
  for (var c = thread; c < HEAD_DIM; c += 128u) {
    if (!recodes) { mean[c] = select(clamp(round(mean[c] / meanStep), -127.0, 127.0), 0.0, meanScale == 0u); }
  }
  workgroupBarrier();
  let now = presentOf(false);
  let parts = partsOf(now.mask, now.counts, job.tokens);
  let to = job.target_ * 4u;
  let any = now.mask != 0u;
  for (var w = thread; any && w < parts.codes * 4u; w += 128u) { words[to + w] = 0u; }
  storageBarrier();
  workgroupBarrier();
  for (var w = thread; any && !PLAIN && w < HEAD_DIM / 4u; w += 128u) {
    var word = 0u;
    for (var i = 0u; i < 4u; i++) { word |= (bitcast<u32>(i32(mean[w * 4u + i])) & 255u) << (i * 8u); }
    words[to + parts.mean / 4u + w] = word;
  }
  if (any && parts.map != 0u && thread < (job.tokens + 7u) / 8u) {
    var word = 0u;
    for (var i = 0u; i < 8u && thread * 8u + i < job.tokens; i++) { word |= tierOf[thread * 8u + i] << (i * 4u); }
    words[to + parts.map / 4u + thread] = word;
  }
  workgroupBarrier();
  for (var c = thread; c < HEAD_DIM; c += 128u) { mean[c] *= meanStep; }
  workgroupBarrier();

  if (there) {
    var cell = 0u;
    var oldCell = 0u;
    for (var t = 0u; t < thread; t++) {
      cell += select(0u, 1u, tierOf[t] == tierOf[thread]);
      oldCell += select(0u, 1u, recodes && oldTierOf[t] == oldTierOf[thread]);
    }
    cellOf[thread] = cell;
    oldCellOf[thread] = oldCell;
    if (!recodes && !PLAIN) {
      var sum = vec2(0.0);
      let k = sourceOf(job, thread, false);
      let v = sourceOf(job, thread, true);
      for (var c = 0u; c < HEAD_DIM; c++) {
        let x = vec2(valueOf(k, c) - mean[c], valueOf(v, c));
        sum += x * x;
      }
      squares[thread] = sum;
    }
  }
  workgroupBarrier();
  if (thread == 0u) {
    if (PLAIN) {
      baseBits = vec2(0u);
      meanScale = 0u;
    } else if (!recodes) {
      var most = vec2(0.0);
      for (var t = 0u; t < job.tokens; t++) { most = max(most, squares[t]); }
      baseBits = vec2(baseOf(most.x), baseOf(most.y));
    }
    bases = vec2(unpack2x16float(baseBits.x).x, unpack2x16float(baseBits.y).x);
    if (any) {
      words[to] = now.mask | (baseBits.x << 16u);
      words[to + 1u] = baseBits.y | (meanScale << 16u);
      let kinds = countOneBits(now.mask);
      for (var i = 0u; i * 4u < kinds; i++) { words[to + 2u + i] = now.counts[i]; }
    }
  }
  workgroupBarrier();

  // Blocks of all groups one after the other, keys and values apart.
  for (var tier = 0u; tier < TIER_COUNT; tier++) {
    let n = atomicLoad(&counts[tier]);
    let blocks = (n + 3u) / 4u;
    if (n > 0u) {
      let place = placeOf(job.target_, job.tokens, tier, false);
      for (var i = thread; i < 2u * blocks; i += 128u) {
        let block = i / 2u;
        let cells = min(4u, n - block * 4u);
        var tokens = vec4<u32>();
        for (var t = 0u; t < job.tokens; t++) {
          if (tierOf[t] == tier && cellOf[t] / 4u == block) { tokens[cellOf[t] & 3u] = t; }
        }
        let values = (i & 1u) == 1u;
        let bits = select(place.group.kBits, place.group.vBits, values);
        writeBlock(job, place.group, values, block, tokens, cells);
        // Cells past the last of a float block.
        if (bits > 8u) {
          let at = (select(place.group.k, place.group.v, values) + block * blockVectors(bits)) * 4u;
          for (var w = cells * HEAD_DIM * bits / 32u; w < blockVectors(bits) * 4u; w++) { words[at + w] = 0u; }
        }
        if (values && job.massTo != 0u) {
          var masses = vec4<u32>();
          for (var t = 0u; t < cells; t++) { masses[t] = massOf(job, tokens[t]); }
          let at = job.massTo + (place.firstCell + block * 4u) / 2u;
          words[at] = masses.x | (masses.y << 16u);
          words[at + 1u] = masses.z | (masses.w << 16u);
        }
      }
    }
  }
}
