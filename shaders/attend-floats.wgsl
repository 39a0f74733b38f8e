// A part of attend-stream.wgsl's `main`: blocks of floats and of values of 8 bits. Adds to what attend-codes.wgsl left.
  if (firstCoded > 0u) {
    let sub = lane % VECS;
    let team = lane / VECS;
    let upper = (sub & (VECS / 2u)) != 0u;
    let odd = (sub & (VECS / 4u)) != 0u;
    let token = select(0u, 2u, upper) + select(0u, 1u, odd);
    let keeps = (sub & (VECS / 4u - 1u)) == 0u;
    // each $h
    let qa$h = qFloat[($hu * VECS + sub) * 2u];
    let qb$h = qFloat[($hu * VECS + sub) * 2u + 1u];
    var e$h = LOWEST;
    var sum$h = 0.0;
    var outA$h = vec4<f32>();
    var outB$h = vec4<f32>();
    // end $h
    let exactK = exactAt(item, kvHead, split.first);
    let warpFirst = warp * (32u / VECS);
    let limit = stepsOf(firstCoded - min(firstCoded, warpFirst), firstCoded);
    for (var first = 0u; first < limit; first += FLOAT_TEAMS) {
      let block = min(first + team, firstCoded - 1u);
      var d: vec4<u32>;
      if (exact) {
        let k = exactK + block * blockVectors(item.exactBits);
        let nibble = nibbleOf(item.exactBits) << 27u;
        d = vec4(k | nibble, (k + exactHalf(item)) | nibble, 0u, (block << 10u) | (min(3u, seen - block * 4u - 1u) << 21u));
      } else {
        d = table[blocksAt + block];
      }
      let nibble = d.x >> 27u;
      let kAt = d.x & PLACE;
      let vAt = d.y & PLACE;
      let less1 = (d.w >> 21u) & 3u;
      // each $t
      var k$t: Floats;
      var v$t: vec4<u32>;
      // end $t
      var kScale = 1.0;
      var vScale = 1.0;
      var mean = 0u;
      if (nibble == 9u) {
        // each $t
        let raw$t = cache[kAt + $tu * VECS + sub];
        v$t = cache[vAt + $tu * VECS + sub];
        // end $t
        // each $t
        k$t = floats16(raw$t);
        // end $t
      } else if (nibble == 8u) {
        let a = cache[kAt + sub * 2u];
        let b = cache[kAt + sub * 2u + 1u];
        v0 = cache[vAt + sub * 2u];
        v1 = cache[vAt + sub * 2u + 1u];
        kScale = halfOf(words[d.z + token / 2u], token);
        vScale = halfOf(words[d.z + (d.w & 255u) + token / 2u], token);
        mean = d.w >> 23u;
        // each $t
        k$t = Floats(bytes(a[$t]), bytes(b[$t]));
        // end $t
      } else {
        // each $t
        k$t = floats32(kAt + ($tu * VECS + sub) * 2u);
        // end $t
      }
      let cell = ((d.w >> 8u) & 8191u) + token;
      let there = first + team < firstCoded && token <= less1 && cell >= hidden;
      // each $h
      var w$h: vec4<f32>;
      {
        let x = vec4(
          dot(qa$h, k0.low) + dot(qb$h, k0.high),
          dot(qa$h, k1.low) + dot(qb$h, k1.high),
          dot(qa$h, k2.low) + dot(qb$h, k2.high),
          dot(qa$h, k3.low) + dot(qb$h, k3.high));
        // Sums over the lanes of a block; each lane keeps one token.
        let pair = select(x.xy, x.zw, upper) + swap2(select(x.zw, x.xy, upper), lane, VECS / 2u);
        var y = select(pair.x, pair.y, odd) + swap1(select(pair.y, pair.x, odd), lane, VECS / 4u);
        for (var mask = VECS / 8u; mask > 0u; mask /= 2u) { y += swap1(y, lane, mask); }
        if (nibble == 8u) { y = y * kScale + qMean[mean * GROUP + $hu]; }
        let s = select(NEVER, y, there);
        if (params.scoreStride > 0u && keeps && first + team < firstCoded && cell >= hidden && cell < mostCells) {
          scoresOut[scoreRow + $hu * params.scoreStride + cell] = select(NEVER, s * LN_2, there);
        }
        var top = max(s, swap1(s, lane, VECS / 4u));
        top = ceil(max(top, swap1(top, lane, VECS / 2u)));
        if (top > e$h) {
          let shrink = exp2(e$h - top);
          sum$h *= shrink;
          outA$h *= shrink;
          outB$h *= shrink;
          e$h = top;
        }
        let p = select(0.0, exp2(s - e$h), there);
        sum$h += select(0.0, p, keeps);
        let weight = p * vScale;
        let beside = swap1(weight, lane, VECS / 4u);
        let here = select(vec2(weight, beside), vec2(beside, weight), odd);
        let other = swap2(here, lane, VECS / 2u);
        w$h = select(vec4(here, other), vec4(other, here), upper);
      }
      // end $h
      if (nibble == 8u) {
        // each $h
        outA$h += vec4(dot(w$h, bytes(v0.x)), dot(w$h, bytes(v0.y)), dot(w$h, bytes(v0.z)), dot(w$h, bytes(v0.w)));
        outB$h += vec4(dot(w$h, bytes(v1.x)), dot(w$h, bytes(v1.y)), dot(w$h, bytes(v1.z)), dot(w$h, bytes(v1.w)));
        // end $h
      } else {
        // each $t
        // What lies past the written slots may be no number.
        if ($tu <= less1) {
          var x: Floats;
          if (nibble == 9u) { x = floats16(v$t); } else { x = floats32(vAt + ($tu * VECS + sub) * 2u); }
          // each $h
          outA$h += w$h[$t] * x.low;
          outB$h += w$h[$t] * x.high;
          // end $h
        }
        // end $t
      }
    }
    // Over the teams of a warp, then with what the codes left.
    // each $h
    {
      var before = vec2(LOWEST, 0.0);
      if (firstCoded < count) { before = perWarp[warp * GROUP + $hu]; }
      let most = max(maximumOf(e$h, lane), before.x);
      let factor = exp2(e$h - most);
      let shrink = exp2(before.x - most);
      let sum = sumOf(sum$h * factor, lane) + before.y * shrink;
      var a = outA$h * factor;
      var b = outB$h * factor;
      for (var mask = 16u; mask >= VECS; mask /= 2u) {
        a += swap4(a, lane, mask);
        b += swap4(b, lane, mask);
      }
      if (own < VECS) {
        let to = (warp * GROUP + $hu) * HEAD_DIM + sub * 8u;
        for (var c = 0u; c < 4u; c++) {
          if (firstCoded < count) {
            a[c] += bitcast<f32>(shared_[to + c]) * shrink;
            b[c] += bitcast<f32>(shared_[to + 4u + c]) * shrink;
          }
          shared_[to + c] = bitcast<u32>(a[c]);
          shared_[to + 4u + c] = bitcast<u32>(b[c]);
        }
      }
      workgroupBarrier();
      if (own == 0u) { perWarp[warp * GROUP + $hu] = vec2(most, sum); }
    }
    // end $h
    workgroupBarrier();
  }
