
(function () {
  "use strict";
  var source = document.getElementById("charts-data"), holder = document.getElementById("charts");
  if (!source || !holder) return;
  var charts = JSON.parse(source.textContent);
  var names = ["--blue", "--amber", "--violet", "--teal"];
  var drawn = [];

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  function short(value) {
    if (value === null || value === undefined) return "–";
    var size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
    return value.toLocaleString("en-US", { maximumSignificantDigits: 5 });
  }

  function interruptions(marks) {
    return {
      hooks: {
        draw: function (plot) {
          var ink = plot.ctx;
          ink.save();
          ink.strokeStyle = colour("--red");
          ink.lineWidth = 1;
          ink.setLineDash([4, 4]);
          marks.forEach(function (mark) {
            var x = plot.valToPos(mark, "x", true);
            if (x < plot.bbox.left || x > plot.bbox.left + plot.bbox.width) return;
            ink.beginPath();
            ink.moveTo(x, plot.bbox.top);
            ink.lineTo(x, plot.bbox.top + plot.bbox.height);
            ink.stroke();
          });
          ink.restore();
        }
      }
    };
  }

  function series(line, index) {
    var name = line.points ? "--green" : names[index % names.length];
    return {
      label: line.label,
      stroke: colour(name),
      width: line.points ? 0 : 1.5,
      spanGaps: true,
      paths: line.points ? function () { return null; } : undefined,
      points: line.points ? { show: true, size: 7, fill: colour(name) } : { show: false },
      value: function (plot, value) { return short(value); }
    };
  }

  function draw() {
    drawn.forEach(function (one) { one.plot.destroy(); });
    drawn = charts.map(function (chart, index) {
      var box = holder.children[index];
      var axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
      var plot = new uPlot({
        width: box.clientWidth,
        height: 220,
        cursor: { y: false },
        scales: { x: { time: false } },
        axes: [
          Object.assign({ label: chart.x_label, labelSize: 18, size: 34 }, axis),
          Object.assign({ size: 62, values: function (plot, ticks) { return ticks.map(short); } }, axis)
        ],
        series: [{ label: chart.x_label, value: function (plot, value) { return short(value); } }].concat(chart.lines.map(series)),
        plugins: [interruptions(chart.marks)]
      }, [chart.x].concat(chart.lines.map(function (line) { return line.values; })), box);
      return { plot: plot, box: box };
    });
  }

  charts.forEach(function (chart) {
    var box = document.createElement("div"), title = document.createElement("h3");
    box.className = "chart";
    title.textContent = chart.title;
    box.appendChild(title);
    holder.appendChild(box);
  });
  draw();
  window.addEventListener("resize", function () {
    drawn.forEach(function (one) { one.plot.setSize({ width: one.box.clientWidth, height: 220 }); });
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
