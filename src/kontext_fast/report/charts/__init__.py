"""One chart per module. A module defines `draw(result, folder) -> Chart` and is found by `draw_charts`."""
