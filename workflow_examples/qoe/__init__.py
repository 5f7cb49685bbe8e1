"""QoE prediction: cell measurement reports of a radio network to a forecast of the cells' traffic."""
