"""The GraSP paper's questions, asked of a network and a data set of one's choice: `fxprune study`."""
