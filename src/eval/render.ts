import { AdkvcError } from '../core/errors.ts';
import type { Chart } from './charts.ts';

/** Draws a chart as SVG with vega-lite, which is a development dependency. @throws AdkvcError where it is not installed */
export async function renderSvg(chart: Chart): Promise<string> {
  const [vegaLite, vega] = await Promise.all([import('vega-lite'), import('vega')]).catch(
    (cause: unknown) => {
      throw new AdkvcError(
        'charts_unavailable',
        'charts need vega and vega-lite: install the development dependencies (npm install)',
        { cause },
      );
    },
  );
  const { spec } = vegaLite.compile({ ...chart.spec, background: 'white' });
  const view = new vega.View(vega.parse(spec), { renderer: 'none' });
  try {
    return await view.toSVG();
  } finally {
    view.finalize();
  }
}
