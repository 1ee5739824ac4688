"""Attribution, faithfulness scores and the figures that show them."""
