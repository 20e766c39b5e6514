"""Tables, figures and pages made from plans and logs."""
